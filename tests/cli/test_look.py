"""``foveal look``: pictures, one page or numbers, and clear refusals."""

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

import foveal
from foveal.cli.look import look
from foveal.model_info import ModelInfo
from foveal.tasks import TASKS


def test_a_photograph_gives_a_picture_of_every_site_and_a_page(
    photo: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert look(str(photo), str(weights), out=str(tmp_path / "out"), grad_cam=True) == 0
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    block1, block2, block3 = "layer1.0.bn2.cbam", "layer2.0.nonlocal_", "layer3.0.dual"
    assert names == sorted(
        [
            "index.html",
            *(f"photo--{block1}--{kind}.png" for kind in ("gates", "mask", "grad-cam")),
            *(f"photo--{block2}--{kind}.png" for kind in ("row", "row-grid", "grad-cam")),
            *(f"photo--{block3}--{kind}.png" for kind in ("row", "row-grid", "channels", "grad-cam")),
        ]
    )
    assert "photo.jpg: 10 pictures" in capsys.readouterr().out


def test_a_folder_is_looked_through_and_bad_files_are_named(
    photo: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.jpg").write_bytes(photo.read_bytes())
    (folder / "a.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    look(str(folder), str(weights), out=str(tmp_path / "out"), sites="layer2.*", query="100,150")
    assert (tmp_path / "out" / "b--layer2.0.nonlocal_--row.png").exists()
    assert not list((tmp_path / "out").glob("*layer1*"))
    assert "skipped: " in (text := capsys.readouterr().out)
    assert "a.png" in text


def test_of_a_detector_answers_are_drawn_and_when_asked_for_what_a_point_attends_to(
    photo: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    options = {
        "encoder_layers": 2,
        "decoder_layers": 1,
        "width": 16,
        "heads": 2,
        "ffn_width": 16,
        "num_queries": 4,
    }
    net = foveal.create_model("detr_test_resnet", num_classes=2, **options)
    file = tmp_path / "detr.safetensors"
    foveal.save(net, file, **ModelInfo("detect", ["ant", "bee"], 64, model="detr_test_resnet").to_dict())
    look(str(photo), str(file), out=str(tmp_path / "answers"))
    assert {p.name.split("--")[1][:9] for p in (tmp_path / "answers").iterdir()} == {"detection"}
    look(str(photo), str(file), out=str(tmp_path / "point"), query="100,150")
    assert {p.name for p in (tmp_path / "point").glob("*encoder*")} == {
        f"photo--encoder.{i}--{kind}.png" for i in (0, 1) for kind in ("row", "row-grid")
    }
    look(str(photo), str(file), html=str(tmp_path / "page.html"))
    assert "decoder.0.multihead_attn" in (tmp_path / "page.html").read_text()
    with pytest.raises(ValueError, match="grad_cam must be left out"):
        look(str(photo), str(file), out=str(tmp_path / "cam"), grad_cam=True)


def test_html_writes_that_file_alone(photo: Path, weights: Path, tmp_path: Path) -> None:
    look(str(photo), str(weights), html=str(tmp_path / "new" / "page.html"))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.html"]


def test_scores_of_scenes_are_written_with_the_picture_by_class(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look("scenes", str(weights), score=True, images=40, out=str(tmp_path / "out"))
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["site"] for row in rows} == {"layer1.0.bn2.cbam", "layer2.0.nonlocal_", "layer3.0.dual"}
    assert {"share_gain", "query_dependence", "deletion_vs_grad_cam"} <= {row["measure"] for row in rows}
    assert (tmp_path / "out" / "gates-by-class.png").exists()
    assert "chance" in capsys.readouterr().out


def test_a_danet_shows_classes_rows_and_channels_of_the_whole_image(
    photo: Path, danet: Path, tmp_path: Path
) -> None:
    look(str(photo), str(danet), query="10,299", out=str(tmp_path / "out"))
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    sites = ("channel.1--channels", "position.1--row-grid", "position.1--row")
    assert names == sorted(["index.html", "photo--classes.png", *(f"photo--{site}.png" for site in sites)])


def test_a_danet_is_scored_without_what_wants_a_class_score(danet: Path, tmp_path: Path) -> None:
    look("scenes", str(danet), score=True, images=3, out=str(tmp_path / "out"))
    with (tmp_path / "out" / "scores.csv").open() as file:
        found = {(row["site"], row["measure"]) for row in csv.DictReader(file)}
    assert {("position.1", "entropy"), ("position.1", "query_dependence")} <= found
    assert {site for site, _ in found} == {"position.1", "channel.1"}
    assert not {measure for _, measure in found} & {"share", "deletion"}


def test_the_data_of_the_training_are_opened_with_its_options(
    danet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, task = [], TASKS["segment"]

    def opened(source: str, split: str, options: dict) -> object:
        asked.append(options)
        return type(task).open(task, source, split, options)

    monkeypatch.setattr(task, "open", opened, raising=False)
    look("scenes", str(danet), images=1, html=str(tmp_path / "page.html"))
    look("scenes", str(danet), images=1, html=str(tmp_path / "page.html"), data_options={"size": 80})
    assert asked == [{"digit_size": [20, 24]}, {"digit_size": [20, 24], "size": 80}]


def test_pictures_of_files_of_one_stem_are_all_kept(photo: Path, weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "bird.jpg").write_bytes(photo.read_bytes())
    Image.open(photo).save(folder / "bird.png")
    look(str(folder), str(weights), out=str(tmp_path / "out"), sites="layer1.*")
    names = {p.name for p in (tmp_path / "out").glob("*.png")}
    assert names == {
        f"{stem}--layer1.0.bn2.cbam--{kind}.png" for stem in ("bird", "bird-2") for kind in ("gates", "mask")
    }


TINY_IMAGENET = Path(__file__).parents[3] / "shared" / "data" / "tiny-imagenet-50"


@pytest.mark.skipif(not TINY_IMAGENET.exists(), reason=f"needs real images with boxes at {TINY_IMAGENET}")
def test_real_images_with_boxes_are_scored_against_chance(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An untrained network: the boxes are found, chance is their area, and nothing is claimed of its maps."""
    look(str(TINY_IMAGENET), str(weights), score=True, images=30, sites="layer2.*", out=str(tmp_path / "out"))
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    assert 0.3 < float(rows["share_chance"]["mean"]) < 0.7
    assert int(rows["share"]["images"]) == 30
    assert float(rows["share"]["low"]) < float(rows["share"]["mean"]) < float(rows["share"]["high"])
    assert "pointing game: does not beat chance" in capsys.readouterr().out


def test_the_default_folder_is_the_first_free(
    photo: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    look(str(photo), str(weights), sites="layer1.*")
    look(str(photo), str(weights), sites="layer1.*")
    assert sorted(p.name for p in (tmp_path / "runs" / "look").iterdir()) == ["photo", "photo-2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere"}, "must be an image, a folder or a data set, got 'nowhere'"),
        ({"query": "12"}, "query must be y,x in pixels"),
        ({"query": "1000,3"}, "inside the image of 200x300, got 1000,3"),
        ({"sites": "layer9.*"}, "sites must match one of layer1.0.bn2.cbam"),
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"score": True, "query": "1,2"}, "score must be given without html, query and grad_cam"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    photo: Path, weights: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        look(**{"source": str(photo), "weights": str(weights), "out": str(tmp_path / "out"), **options})


def test_a_folder_that_is_not_empty_is_not_written_to(photo: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="out must be a new or empty folder"):
        look(str(photo), str(weights), out=str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="source must hold an image that can be read"):
        look(str(tmp_path / "empty"), str(weights), out=str(tmp_path / "out"))
