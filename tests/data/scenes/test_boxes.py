import torch

from foveal.data import Scenes, open_dataset
from foveal.data.scenes import SceneBoxes


def test_every_item_is_the_same_whoever_asks_and_has_one_to_four_digits():
    scenes = SceneBoxes("train", length=200)
    together = scenes.__getitems__(range(200))
    counts = [len(item["labels"]) for item in together]
    assert set(counts) == {1, 2, 3, 4}
    assert min(counts.count(n) for n in (1, 2, 3, 4)) > 30
    for i in (0, 57, 199):
        alone = SceneBoxes("train", length=200)[i]
        for name, value in together[i].items():
            assert (
                torch.equal(torch.as_tensor(value), torch.as_tensor(alone[name])) if name != "file" else True
            )


def test_boxes_hold_their_digit_and_digits_are_12_to_24_pixels():
    for item in SceneBoxes("val", length=40).__getitems__(range(40)):
        sides = item["boxes_xyxy"][:, 2:] - item["boxes_xyxy"][:, :2]
        # a digit leaves a little of its height free
        assert (sides[:, 1] >= 8).all()
        assert (sides <= 24).all()
        assert (item["boxes_xyxy"] >= 0).all()
        assert (item["boxes_xyxy"] <= 64).all()


def test_a_digit_that_is_not_there_leaves_no_trace():
    scenes, all_four = (
        SceneBoxes("train", length=50),
        Scenes("train", length=50, size=64, objects=4, digit_size=(12, 24)),
    )
    for i in range(50):
        few, full = scenes[i], all_four[i]
        count = len(few["labels"])
        assert torch.equal(few["labels"], full["labels"][:count])
        outside = torch.ones(64, 64, dtype=torch.bool)
        for x1, y1, x2, y2 in full["boxes_xyxy"].int().tolist():
            outside[max(0, y1 - 12) : y2 + 12, max(0, x1 - 12) : x2 + 12] = (
                False  # faint edges count as no digit
            )
        assert torch.equal(few["image"][:, outside], full["image"][:, outside])
        if count < 4:
            assert not torch.equal(few["image"], full["image"])


def test_ids_count_from_one_and_differ():
    items = open_dataset("scenes", "val", task="detect", length=30).__getitems__(range(30))
    assert [item["image_id"] for item in items] == list(range(1, 31))
    ids = [identity for item in items for identity in item["annotation_ids"].tolist()]
    assert len(set(ids)) == len(ids)
    assert min(ids) == 1
