import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torchvision import datasets

from foveal.data import open_dataset
from foveal.data.sources.torchvision import _dataset_class, _parameters, _parts

FAKE: dict[str, Any] = {"arguments": {"size": 30, "image_size": (3, 8, 8), "num_classes": 3}}


def test_mnist_has_its_own_test_and_a_divided_train(shared: Callable[[str], Path]) -> None:
    root = str(shared("MNIST").parent)
    data = {split: open_dataset("torchvision:MNIST", split, root=root) for split in ("train", "val", "test")}
    assert len(data["train"]) + len(data["val"]) == 60000
    assert 5990 <= len(data["val"]) <= 6010
    assert len(data["test"]) == 10000
    assert data["val"].classes[0] == "0 - zero"
    assert data["val"][0]["image"].shape == (3, 28, 28)
    assert data["test"][0]["label"] == 7
    assert not data["val"].mirror


def test_any_case_of_the_name_and_sets_without_parts() -> None:
    train, val = (open_dataset("torchvision:fakedata", split, **FAKE) for split in ("train", "val"))
    assert (len(train), len(val)) == (27, 3)
    assert train.classes == ["0", "1", "2"]
    assert train.mirror
    assert train.names[0].startswith("FakeData[")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("CIFAR10", {"train": {"train": True}, "test": {"train": False}}),
        ("STL10", {"train": {"split": "train"}, "test": {"split": "test"}}),
        ("Imagenette", {"train": {"split": "train"}, "val": {"split": "val"}}),
        ("Country211", {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}}),
        ("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
        ("FGVCAircraft", {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}),
        ("Places365", {"train": {"split": "train-standard"}, "val": {"split": "val"}}),
        ("ImageNet", {"train": {"split": "train"}, "val": {"split": "val"}}),
        ("EMNIST", {"train": {"train": True}, "test": {"train": False}}),
        ("EuroSAT", {}),
    ],
)
def test_parts_are_learned_from_the_class(name: str, parts: dict, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    kind = _dataset_class(name)
    found = _parts(_parameters(kind), {}, kind)
    if name == "Places365":
        found.pop("test", None)  # not in every release
    assert found == parts
    assert not list(tmp_path.iterdir())


def test_cifar_as_torchvision_stores_it(tmp_path: Path) -> None:
    """An ImageFolder of torchvision gives the class names and labels that it found."""
    from PIL import Image

    for kind in ("a", "b"):
        for i in range(4):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.new("L", (4, 4), i).save(tmp_path / kind / f"{i}.png")
    data = open_dataset("torchvision:ImageFolder", "val", root=str(tmp_path), val_share=0.25)
    assert (data.classes, [item["label"] for item in data]) == (["a", "b"], [0, 1])


def test_nothing_is_downloaded_unasked(tmp_path: Path, monkeypatch: Any) -> None:
    asked = []
    monkeypatch.setattr(datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    with pytest.raises(ValueError, match=r"CIFAR10 not found in .*; download=True fetches it") as error:
        open_dataset("torchvision:CIFAR10", "train", root=str(tmp_path))
    assert "\n" not in str(error.value)
    assert not asked
    with pytest.raises(ValueError, match="not found"):
        open_dataset("torchvision:CIFAR10", "train", root=str(tmp_path), download=True)
    assert asked == [str(tmp_path)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("CIFRA10", {}, "no data set of that name; near: CIFAR10"),
        ("EMNIST", {}, "EMNIST needs other arguments: .*'split'"),
        ("FakeData", {"arguments": {"colour": 1}}, "FakeData needs other arguments: .*'colour'"),
        ("FakeData", {"arguments": {"size": 0}}, "holds no images"),
        ("FakeData", {"arguments": {"size": 5, "num_classes": 1}}, "at least 2 classes"),
    ],
)
def test_wrong_names_and_arguments_are_refused(
    name: str, options: dict, message: str, tmp_path: Path
) -> None:
    options = options if name == "FakeData" else options | {"root": str(tmp_path)}
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(f"torchvision:{name}", "train", **options)
    assert "\n" not in str(error.value)


def test_sets_that_are_no_classification_are_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, i: (object(), {"boxes": []}))
    with pytest.raises(ValueError, match=r"must give \(image, class number\), got object with dict"):
        open_dataset("torchvision:FakeData", "train", **FAKE)


def test_files_are_opened_by_our_own_readers(tmp_path: Path, draw: Callable[..., Path]) -> None:
    """torchvision's own loader would take any format that Pillow knows."""
    for kind in ("a", "b"):
        for i in range(4):
            draw(tmp_path / kind / f"{i}.jpg")
    (tmp_path / "a" / "0.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(ValueError, match=r"not an image file .*0\.jpg"):
        open_dataset("torchvision:ImageFolder", "train", root=str(tmp_path))[0]


def test_the_fingerprint_follows_files_and_labels(tmp_path: Path, draw: Callable[..., Path]) -> None:
    for kind in ("a", "b"):
        for i in range(4):
            draw(tmp_path / "data" / kind / f"{i}.jpg")

    def now() -> str:
        return open_dataset("torchvision:ImageFolder", "train", root=str(tmp_path / "data")).fingerprint

    before = now()
    assert now() == before
    os.utime(tmp_path / "data" / "a" / "0.jpg", ns=(1, 1))
    os.utime(tmp_path / "data" / "a" / "1.jpg", ns=(1, 1))
    assert now() != before


@pytest.mark.parametrize(("name", "task"), [("MNIST", "classify"), ("VOCSegmentation", "segment")])
def test_arguments_fetch_nothing(tmp_path: Path, name: str, task: str) -> None:
    """They may come from a weights file, whose download alone is left out."""
    with pytest.raises(ValueError, match="arguments must not hold download; root and download are options"):
        open_dataset(
            f"torchvision:{name}", "train", task=task, root=str(tmp_path / "x"), arguments={"download": True}
        )
    assert not (tmp_path / "x").exists()
