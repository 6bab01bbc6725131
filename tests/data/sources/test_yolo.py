import pytest
from tests.data.boxes_by_hand import image

from foveal.data import open_dataset
from foveal.errors import FovealError


def written(root, lines, yaml="names: [cat, dog]\ntrain: images/train\nval: images/val\n"):
    for part in ("train", "val"):
        image(root / "images" / part / "1.png")
        image(root / "images" / part / "2.png")
        label = root / "labels" / part / "1.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(lines)
    if yaml:
        (root / "data.yaml").write_text(yaml)
    return root


def opened(root, split="train", **options):
    return open_dataset(str(root), split, task="detect", **options)


def test_shares_become_pixels_and_outlines_the_box_around_them(tmp_path):
    data = opened(written(tmp_path, "1 0.5 0.5 0.5 0.2\n0 0.1 0.2 0.4 0.2 0.4 0.6\n"))
    assert data[0]["boxes_xyxy"].tolist() == [[10, 12, 30, 18], [4, 6, 16, 18]]
    assert data[0]["labels"].tolist() == [1, 0]
    assert data[1]["boxes_xyxy"].shape == (0, 4)
    assert any("1 of 2 images without a label file" in note for note in data.notes)


def test_classes_in_another_order_keep_their_names(tmp_path):
    lines = "1 0.5 0.5 0.5 0.2\n0 0.1 0.2 0.2 0.2\n"
    with_yaml = opened(written(tmp_path / "yaml", lines), classes=["dog", "cat"])
    assert (with_yaml.classes, with_yaml[0]["labels"].tolist()) == (["dog", "cat"], [0, 1])
    assert with_yaml.category_ids == [1, 0]
    (written(tmp_path / "list", lines, yaml=None) / "classes.txt").write_text("cat\ndog\n")
    assert opened(tmp_path / "list", classes=["dog", "cat"])[0]["labels"].tolist() == [0, 1]
    (tmp_path / "list" / "classes.txt").unlink()
    assert opened(tmp_path / "list", classes=["dog", "cat"])[0]["labels"].tolist() == [1, 0]
    with pytest.raises(FovealError, match="a class must be 0 to 0, as names counts from 0, got 1"):
        opened(tmp_path / "yaml", classes=["cat", "cow"])


def test_keypoints_behind_a_box_are_no_outline(tmp_path):
    """Two points of two numbers each have as many numbers as an outline of four."""
    yaml = "names: [cat, dog]\ntrain: images/train\nkpt_shape: {}\n"
    data = opened(written(tmp_path, "1 0.5 0.5 0.5 0.2 0.9 0.9 0.1 0.1\n", yaml.format("[2, 2]")))
    assert data[0]["boxes_xyxy"].tolist() == [[10, 12, 30, 18]]
    with pytest.raises(
        FovealError, match=r"kpt_shape must be two whole numbers above 0, got 17 in .*data\.yaml"
    ):
        opened(written(tmp_path, "", yaml.format(17)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.5 0.2", r"labels/train/1.txt:1: a class must be 0 to 1"),
        ("0 20 12 10 5", r"1.txt:1: values must be shares"),
        ("0 0.5 0.5 0.5", r"1.txt:1: a line must be class x y width height"),
        ("cat 0.5 0.5 0.5 0.2", r"1.txt:1: got 'cat 0.5"),
    ],
)
def test_a_wrong_line_is_refused_with_its_file_and_number(tmp_path, line, message):
    with pytest.raises(FovealError, match=message):
        opened(written(tmp_path, line))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat, dog]\nnc: 3\ntrain: images/train\n", "nc must be the number of names, 2, got 3"),
        ("names: {1: cat, 2: dog}\ntrain: images/train\n", "must count from 0"),
        ("names: [cat, [dog]]\ntrain: images/train\n", "must be a list of classes"),
        ("names: [cat, dog]\ntrain: nowhere\n", "must exist, got nowhere"),
        ("names: [cat\ntrain: images/train\n", "must be YAML"),
    ],
)
def test_a_yaml_file_that_does_not_fit_is_refused(tmp_path, yaml, message):
    with pytest.raises(FovealError, match=message):
        opened(written(tmp_path, "", yaml))


def test_names_are_taken_as_they_are_written(tmp_path):
    """YAML reads no as a truth value, 007 and 1_0 as numbers and ~ as nothing."""
    written(tmp_path, "1 0.5 0.5 0.5 0.2", "names: [no, 007, 1_0, ~]\ntrain: images/train\nval: images/val\n")
    assert opened(tmp_path).classes == ["no", "007", "1_0", "~"]


def test_the_part_may_be_named_one_folder_too_high_as_roboflow_does(tmp_path):
    root = written(
        tmp_path, "0 0.5 0.5 0.5 0.2", "names: {0: cat}\ntrain: ../images/train\nval: ../images/val\n"
    )
    assert len(opened(root)) == 2


def test_without_a_yaml_file_a_class_list_gives_the_names(tmp_path):
    root = written(tmp_path, "1 0.5 0.5 0.5 0.2", yaml="")
    (root / "classes.txt").write_text("cat\ndog\n")
    assert opened(root, "val").classes == ["cat", "dog"]


def test_labels_without_an_image_are_told(tmp_path):
    root = written(tmp_path, "1 0.5 0.5 0.5 0.2")
    (root / "labels" / "train" / "lost.txt").write_text("")
    assert list(opened(root).left_out) == ["labels/train/lost.txt"]


def test_paths_written_on_windows_are_found(tmp_path):
    written(
        tmp_path,
        "1 0.5 0.5 0.5 0.2\n",
        "names: [cat, dog]\npath: .\\\ntrain: lists\\train.txt\nval: images\\val\n",
    )
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "train.txt").write_text("..\\images\\train\\1.png\r\n", encoding="utf-16")
    assert opened(tmp_path).names == ["images/train/1.png"]
    assert opened(tmp_path, "val").names == ["images/val/1.png", "images/val/2.png"]
