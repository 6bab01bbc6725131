"""Which items are held out depends on names alone, and names say which part a folder is."""

import unicodedata

import pytest

from foveal.data.split import choose_part, hold_out, split_of, splits_in


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("training_set", {"train"}), ("test_set", {"test"}), ("seg_train", {"train"}), ("train2017", {"train"}),
        ("Train", {"train"}), ("VALIDATION", {"val"}), ("pets-test-00000", {"test"}), ("imagesTrain", {"train"}),
        ("train_val", {"train", "val"}), ("trainer", set()), ("restrain", set()), ("contest", set()), ("a", set()),
    ],
)  # fmt: skip
def test_splits_are_words_of_a_name(name: str, splits: set[str]) -> None:
    assert splits_in(name) == splits
    assert split_of(name) == (min(splits) if len(splits) == 1 else None)


def test_both_spellings_of_an_accent_are_held_out_alike() -> None:
    """macOS writes names decomposed, other systems composed."""
    names = [f"café{i}.png" for i in range(50)]
    options = {"val_share": 0.3, "split_seed": 0}
    held = [
        hold_out([unicodedata.normalize(form, name) for name in names], None, "val", **options)
        for form in ("NFC", "NFD")
    ]
    assert held[0] == held[1]


def test_what_is_held_out_stays_what_it_was() -> None:
    """Figures of a run are compared with those of an earlier release on the same held-out images."""
    names = [f"cat/{i:02}.jpg" for i in range(20)]
    assert hold_out(names, None, "val", val_share=0.2, split_seed=0) == [2, 10, 12, 14]


@pytest.mark.parametrize(
    ("available", "split", "expected"),
    [
        ((), "train", (None, True)),
        ((), "val", (None, True)),
        (("train", "test"), "train", ("train", True)),
        (("train", "test"), "val", ("train", True)),
        (("train", "test"), "test", ("test", False)),
        (("train", "val"), "train", ("train", False)),
        (("train", "val"), "val", ("val", False)),
        (("val",), "val", ("val", False)),
    ],
)
def test_the_rule_that_chooses_the_part(available: tuple, split: str, expected: tuple) -> None:
    assert choose_part("x", available, split) == expected


@pytest.mark.parametrize(
    ("available", "split", "message"),
    [
        ((), "test", "no part for split 'test', got only train and val"),
        (("train", "val"), "test", "no part for split 'test', got train, val"),
        (("test",), "val", "no part for split 'val', got test"),
        (("train",), "dev", "split must be one of train, val, test, got 'dev'"),
    ],
)
def test_a_split_that_is_not_there_is_refused(available: tuple, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_part("x", available, split)


def test_hold_out_takes_its_share_of_every_class_and_leaves_none_empty() -> None:
    labels = [0] * 40 + [1] * 3 + [2] * 2
    names = [f"{i}.png" for i in range(45)]
    options = {"val_share": 0.25, "split_seed": 0}
    val = hold_out(names, labels, "val", **options)
    train = hold_out(names, labels, "train", **options)
    assert sorted(val + train) == list(range(45))
    assert [sum(labels[i] == kind for i in val) for kind in range(3)] == [10, 1, 1]
    assert hold_out(names, labels, "val", val_share=0.25, split_seed=1) != val


def test_a_new_file_moves_at_most_one_old_file_across_the_border() -> None:
    names = [f"{i}.png" for i in range(200)]
    options = {"val_share": 0.1, "split_seed": 0}
    before = {names[i] for i in hold_out(names, None, "val", **options)}
    more = ["new.png", *names]
    after = {more[i] for i in hold_out(more, None, "val", **options)}
    assert len(before - after) <= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_val_share_must_leave_both_parts_something(share: float) -> None:
    with pytest.raises(ValueError, match="val_share must be above 0 and below 1"):
        hold_out(["a", "b"], None, "val", val_share=share, split_seed=0)


@pytest.mark.parametrize("seed", range(5))
def test_copies_that_roboflow_made_of_one_image_stay_together(seed: int) -> None:
    names = [f"cats/{i}_jpg.rf.{i:031x}{copy}.jpg" for i in range(20) for copy in range(3)]
    parts = {
        part: {names[i] for i in hold_out(names, None, part, val_share=0.2, split_seed=seed)}
        for part in ("train", "val")
    }
    sources = {part: {name.split(".rf.")[0] for name in found} for part, found in parts.items()}
    assert not sources["train"] & sources["val"]
    assert len(sources["val"]) == 4
    one = names[:3]
    assert len(hold_out(one, None, "train", val_share=0.4, split_seed=seed)) == 2
