"""The images that a person names: every one is taken or named with the reason, and one at a time."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.inference import Predictor, predictor
from foveal.look import images
from foveal.look.images import NamedImages, bundled_images, own_images, prepared_batches
from foveal.tasks import TASKS

CLASSIFY = TASKS["classify"]


def write(path: Path, value: int = 0, size: tuple[int, int] = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def test_images_of_a_folder_are_decoded_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(5):
        write(tmp_path / f"{i}.png", i)
    decoded = []
    real = images.decode_image
    monkeypatch.setattr(images, "decode_image", lambda path: decoded.append(path) or real(path))
    named = iter(NamedImages(CLASSIFY, str(tmp_path), "val", 5, {}))
    assert next(named)[0] == "0.png"
    assert len(decoded) == 1


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    write(tmp_path / "c.png")
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "e.psd").write_bytes(b"8BPS")
    named = NamedImages(CLASSIFY, str(tmp_path), "val", 12, {})
    assert [name for name, _ in named] == ["a.png", "c.png"]
    assert list(named.unreadable) == ["b.png"]
    assert any("d.png: no regular file" in note for note in named.notes)
    assert any("e.psd: images of this kind are not read" in note for note in named.notes)


def test_a_file_without_permission_does_not_end_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    real = images.decode_image

    def forbidden(path: Path) -> torch.Tensor:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(images, "decode_image", forbidden)
    named = NamedImages(CLASSIFY, str(tmp_path), "val", 12, {})
    assert [name for name, _ in named] == ["b.png"]
    assert "Permission denied" in named.unreadable["a.png"]


def test_it_is_said_how_many_are_left_out(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / f"{i}.png")
    assert NamedImages(CLASSIFY, str(tmp_path), "val", 3, {}).notes == [
        "3 images, the first of 5 (option images)"
    ]
    assert NamedImages(CLASSIFY, str(tmp_path), "val", 5, {}).notes == []


def test_images_of_a_data_set_are_spread_over_it(coloured_folder: Path) -> None:
    """The first ones would all be of one class."""
    named = NamedImages(CLASSIFY, str(coloured_folder), "val", 3, {})
    colours = [int(image.float().mean((1, 2)).argmax()) for _, image in named]
    assert sorted(colours) == [0, 1, 2]
    assert named.notes == ["3 images, spread over the 18 (option images)"]


def test_a_single_file_that_cannot_be_read_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"not an image file.*b.png"):
        list(NamedImages(CLASSIFY, str(tmp_path / "b.png"), "val", 3, {}))


def test_batches_hold_images_of_one_size_and_leave_none_out(network: Predictor, tmp_path: Path) -> None:
    for i in range(40):
        write(tmp_path / f"{i:02}.png", 6 * i)
    batches = list(prepared_batches(network, NamedImages(CLASSIFY, str(tmp_path), "val", 40, {})))
    assert [len(batch["image"]) for batch in batches] == [32, 8]
    values = torch.cat([batch["image"] for batch in batches])[:, 0, 16, 16]
    np.testing.assert_allclose(values, (torch.arange(40) * 6 / 255 - 0.5) / 0.25, atol=1e-5)


# --------------------------------------------------------------------------------------- what a page begins with


@pytest.fixture
def network(weights: Path) -> Predictor:
    return predictor(weights, "cpu")


def trained_on(network: Predictor, data: str, **options: object) -> Predictor:
    return Predictor(network.net, replace(network.info, data=data, data_options=options), network.name)


def test_validation_images_of_the_training_come_first(network: Predictor, coloured_folder: Path) -> None:
    found, note = own_images(trained_on(network, str(coloured_folder)), 3)
    assert [name.partition(" ")[2] for name, _ in found] == ["1 (blue)", "2 (green)", "3 (red)"]
    assert note == f"examples: 3 of {coloured_folder} (val)"


def test_weights_cannot_make_the_page_fetch_data(network: Predictor, tmp_path: Path) -> None:
    for data in ("torchvision:CIFAR10", "hf://x/y", "scenes"):
        asked = trained_on(network, data, download=True, root=str(tmp_path / "made"))
        assert own_images(asked) == ([], "")
    assert list(tmp_path.iterdir()) == []


def test_options_that_lead_elsewhere_are_not_taken_from_weights(
    network: Predictor, coloured_folder: Path, tmp_path: Path
) -> None:
    asked = trained_on(network, str(coloured_folder), download=True, root=str(tmp_path), arguments={"a": 1})
    assert len(own_images(asked, 2)[0]) == 2


@pytest.mark.parametrize("options", [{}, {"no_such_option": 1}])
def test_data_that_cannot_be_opened_are_a_line_and_no_error(
    network: Predictor, tmp_path: Path, options: dict
) -> None:
    write(tmp_path / "one" / "a.png")
    found, note = own_images(trained_on(network, str(tmp_path), **options))
    assert found == []
    assert note.startswith(f"no examples of {tmp_path}: ")


def test_data_of_very_many_files_are_not_opened(
    network: Predictor, coloured_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MOST_FILES", 10)
    monkeypatch.setattr(type(CLASSIFY), "open", lambda *_: pytest.fail("opened"))
    assert "more than 10 files" in own_images(trained_on(network, str(coloured_folder)))[1]


def test_bundled_images_are_scenes_and_photographs(network: Predictor) -> None:
    assert [name.partition(" ")[0] for name, _ in bundled_images(network, 2)] == [
        "scene",
        "scene",
        "china.jpg",
        "flower.jpg",
    ]


def test_chunks_are_a_data_set_wherever_they_are(coloured_folder, tmp_path):
    from foveal.look.images import is_data_set
    from foveal.packing import pack

    pack(str(coloured_folder), tmp_path / "packed")
    assert is_data_set(str(tmp_path / "packed"))
    assert is_data_set(str(tmp_path / "packed" / "train")), "as litdata has them"
    assert is_data_set("https://data.example.org/packed")
