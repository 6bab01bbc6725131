"""Files of what a network attends to: every site of every image, under names that a file system takes."""

import json
from pathlib import Path

import pytest
import torch

from foveal.inference import Predictor, predictor
from foveal.look import pictures
from foveal.look.pictures import PageFile, PictureFolder, see

IMAGE = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(weights: Path) -> Predictor:
    return predictor(weights, "cpu")


def in_page(path: Path) -> dict:
    return json.loads(path.read_text().split('id="foveal-data">')[1].split("</script>")[0])


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".jpg", "写真" * 90 + ".png", "caf\udce9.png", "../../x.png", "CON.png"]
)
def test_any_file_name_of_an_image_gives_pictures_in_the_folder(
    network: Predictor, tmp_path: Path, name: str
) -> None:
    folder = PictureFolder(network, tmp_path, sites="layer1.*", point=None, cam=False)
    assert folder.draw(see(network, name, IMAGE)) == 2
    written = [path.name for path in tmp_path.iterdir()]
    assert len(written) == 2
    assert all(len(one.encode()) < 255 and one.endswith(".png") for one in written)


def test_two_long_names_that_begin_alike_do_not_overwrite_each_other(
    network: Predictor, tmp_path: Path
) -> None:
    folder = PictureFolder(network, tmp_path, sites="layer1.*", point=None, cam=False)
    for end in ("a", "b"):
        folder.draw(see(network, "x" * 300 + end, IMAGE))
    assert len(list(tmp_path.iterdir())) == 4


def test_the_page_holds_the_sites_that_were_asked_for(network: Predictor, tmp_path: Path) -> None:
    page = PageFile(network, "layer2.*")
    page.add(see(network, "a.png", IMAGE))
    page.write(tmp_path / "page.html")
    (image,) = in_page(tmp_path / "page.html")["images"]
    assert [site["name"] for site in image["networks"][0]["sites"]] == ["layer2.0.nonlocal_"]


def test_the_page_says_how_many_images_it_leaves_out(
    network: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "PAGE_IMAGES", 2)
    page = PageFile(network)
    for name in "abc":
        page.add(see(network, name, IMAGE))
    page.write(tmp_path / "page.html")
    data = in_page(tmp_path / "page.html")
    assert [image["name"] for image in data["images"]] == ["a", "b"]
    assert data["note"] == "This file holds the first 2 of 3 images."
