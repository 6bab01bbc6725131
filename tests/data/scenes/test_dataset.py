import pytest
import torch
from torch.utils.data import DataLoader

from foveal.data import SceneMasks, Scenes, class_mask


def test_an_item_is_the_same_in_any_order_batch_length_and_process() -> None:
    few, many = Scenes("train", length=40, seed=3), Scenes("train", length=4000, seed=3)
    whole = few.as_tensors()
    shuffled = [few[i] for i in (31, 7, 0, 39)]
    for i, item in zip((31, 7, 0, 39), shuffled, strict=True):
        for name, value in item.items():
            assert torch.equal(torch.as_tensor(value), whole[name][i])
            assert torch.equal(torch.as_tensor(many[i][name]), whole[name][i])
    for workers in (0, 2):
        loaded = torch.cat([batch["image"] for batch in DataLoader(few, batch_size=16, num_workers=workers)])
        assert torch.equal(loaded, whole["image"])


def test_seeds_and_splits_give_different_scenes_and_every_digit() -> None:
    train = Scenes("train", length=300).as_tensors()
    assert train["label"].unique().tolist() == list(range(10))
    assert len({image.numpy().tobytes() for image in train["image"]}) == 300
    for other in (Scenes("train", length=300, seed=1), Scenes("val", length=300), Scenes("test", length=300)):
        assert not (other.as_tensors()["image"] == train["image"]).flatten(1).all(1).any()


def test_a_stored_scene_stays_what_it_was() -> None:
    """Results published with a seed stay comparable: the generator may not drift."""
    batch = Scenes("train", length=8).as_tensors()
    assert batch["label"].tolist() == [5, 2, 0, 3, 6, 2, 6, 8]
    middle = torch.tensor([89, 94, 103, 112, 118, 121, 124, 126, 114, 91, 85])
    assert (
        batch["image"][0, 0, 14, 11:22].int() - middle
    ).abs().max() <= 1  # rounding differs between machines


def test_mask_and_box_lie_on_a_light_digit_of_12_to_16_pixels_over_a_dark_background() -> None:
    batch = Scenes("train", length=500, distractors=0).as_tensors()
    light = batch["image"].amin(dim=1).float()
    inside = batch["mask"] == 1
    assert light[inside].mean() > 150
    assert batch["image"].float().mean(dim=1)[~inside].mean() < 85  # a third of 255
    for mask, (x1, y1, x2, y2) in zip(batch["mask"], batch["box_xyxy"].int().tolist(), strict=True):
        rows, columns = mask.any(1).nonzero().flatten().tolist(), mask.any(0).nonzero().flatten().tolist()
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == [x1, y1, x2, y2]
        assert 10 <= y2 - y1 <= 16
        assert 3 <= x2 - x1 <= 16


def test_distractors_never_cover_the_object() -> None:
    batch = Scenes("train", length=200, distractors=5).as_tensors()
    opaque = batch["image"].amin(dim=1)[batch["mask"] == 1]
    assert opaque.min() >= 75  # at 40 % opacity a stroke of brightness 190 stands out of black as 76


def test_several_objects_do_not_touch_and_the_mask_numbers_them() -> None:
    batch = Scenes("val", length=30, size=96, objects=5, distractors=3).as_tensors()
    assert batch["labels"].shape == (30, 5)
    assert batch["boxes_xyxy"].shape == (30, 5, 4)
    for mask, boxes in zip(batch["mask"], batch["boxes_xyxy"].int().tolist(), strict=True):
        for number, (x1, y1, x2, y2) in enumerate(boxes, start=1):
            window = mask[y1:y2, x1:x2]
            assert set(window.unique().tolist()) <= {0, number}
            assert (window == number).sum() == (mask == number).sum() > 0


def test_frames_move_the_object_in_a_straight_line_over_a_still_background() -> None:
    batch = Scenes("train", length=40, frames=5, distractors=1).as_tensors()
    assert batch["image"].shape == (40, 3, 5, 32, 32)
    assert batch["mask"].shape == (40, 5, 32, 32)
    centre = (batch["box_xyxy"][..., :2] + batch["box_xyxy"][..., 2:]) / 2
    steps = centre.diff(dim=1)
    assert steps.abs().sum(dim=(1, 2)).median() > 5
    assert (steps - steps.mean(dim=1, keepdim=True)).abs().max() <= 1.5  # boxes are whole pixels
    still = Scenes("train", length=40, frames=5, distractors=0).as_tensors()
    empty = (still["image"].amax(dim=1) < 60).all(dim=1)  # (n, h, w): never lit
    same = (still["image"][:, :, :1] == still["image"]).all(dim=1).all(dim=1)
    assert (same & empty).sum() > 0.5 * empty.sum()


@pytest.mark.parametrize(("objects", "frames"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_class_masks_name_the_digit_of_every_object(objects: int, frames: int) -> None:
    scenes = Scenes("train", length=6, size=64, objects=objects, frames=frames)
    batch = scenes.as_tensors()
    classes = class_mask(batch)
    assert classes.dtype == torch.uint8
    labels = batch["labels"] if objects > 1 else batch["label"][:, None]
    for i in range(6):
        assert torch.equal(class_mask(scenes[i]), classes[i])
        for number in range(objects):
            assert (classes[i][batch["mask"][i] == number + 1] == labels[i, number] + 1).all()
        assert (classes[i][batch["mask"][i] == 0] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "split must be one of train, val, test, got 'dev'"),
        ({"length": 0}, "length must be between 1 and"),
        ({"size": 8}, "size must be between 16 and 512, got 8"),
        ({"size": 16}, "digits must be 8 to 16 pixels high for size=16 with objects=1, got 6 to 8"),
        ({"objects": 9}, "digits must be 8 to 10.6667 pixels"),
        ({"digit_size": (20.0, 40.0)}, "got 20 to 40"),
        ({"frames": 0}, "frames must be between 1 and 256, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        Scenes(**options)
    assert message in str(error.value)


def test_an_index_beyond_the_end_ends_a_loop() -> None:
    scenes = Scenes("val", length=3)
    assert len(list(iter(scenes))) == 3  # pyright: ignore[reportArgumentType]
    assert torch.equal(scenes[-1]["image"], scenes[2]["image"])
    with pytest.raises(IndexError, match="below 3"):
        scenes[3]


def test_scenes_have_names_and_a_fingerprint_of_their_options() -> None:
    scenes = Scenes("val", length=3)
    assert scenes.names == ["val/0", "val/1", "val/2"]
    assert (scenes.left_out, scenes.notes, scenes.skipped) == ({}, [], {})
    others = [
        Scenes("val", length=3, seed=1),
        Scenes("val", length=4),
        Scenes("test", length=3),
        SceneMasks("val"),
    ]
    assert Scenes("val", length=3).fingerprint == scenes.fingerprint
    assert len({scenes.fingerprint, *(other.fingerprint for other in others)}) == 5
