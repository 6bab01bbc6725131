"""Videos in class folders and in CSV files."""

import unicodedata

import pytest
from tests.data.videos import flat_frames, known, write_animation, write_frames

from foveal.data import open_dataset
from foveal.data.sources.clips import open_clips
from foveal.errors import FovealError


def opened(spec, split="train", **options):
    return open_dataset(str(spec), split, task="clips", **options)


def animations(root, names, count=12):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_animation(root / name, flat_frames(count, 8, 8))


def test_class_folders_in_parts(tmp_path):
    animations(tmp_path, ["train/run/a.webp", "train/walk/b.webp", "val/run/c.webp", "val/walk/d.gif"])
    write_frames(tmp_path / "train" / "walk" / "e", flat_frames(3, 8, 8))
    data = opened(tmp_path)
    assert data.classes == ["run", "walk"]
    assert data.names == ["train/run/a.webp", "train/walk/b.webp", "train/walk/e"]
    assert data.labels == [0, 1, 1]
    assert data[0]["image"].shape == (3, 12, 8, 8)
    assert opened(tmp_path, "val").names == ["val/run/c.webp", "val/walk/d.gif"]
    assert data.fingerprint != opened(tmp_path, "val").fingerprint


def test_class_folders_without_parts_are_divided(tmp_path):
    animations(tmp_path, [f"{label}/{i}.webp" for label in ("run", "walk") for i in range(5)])
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert sorted(train.names + val.names) == sorted(
        f"{label}/{i}.webp" for label in ("run", "walk") for i in range(5)
    )
    assert len(val) == 2


def test_a_damaged_video_is_replaced_by_the_next_one_and_counted(tmp_path):
    animations(tmp_path, [f"{label}/{i}.webp" for label in ("run", "walk") for i in range(5)], count=4)
    animations(tmp_path, ["run/0.webp"], count=1)
    data = opened(tmp_path, max_unreadable=0.5)
    at = data.names.index("run/0.webp") if "run/0.webp" in data.names else None
    assert at is not None
    clip = data.clip(at, lambda count: [count - 1])
    assert known(clip["image"]) == [3]
    assert "at least 2 frames, got 1" in data.skipped["run/0.webp"]
    strict = opened(tmp_path, max_unreadable=0.0)
    with pytest.raises(FovealError, match=r"the first is run/0.webp: a video must have at least 2 frames"):
        strict.clip(at, lambda count: [0])


def test_a_list_of_paths_and_labels(tmp_path):
    animations(tmp_path / "videos", ["a.webp", "b c.webp"])
    (tmp_path / "train.csv").write_text("a.webp 10\nb c.webp 9\ngone.webp 9\n")
    (tmp_path / "val.csv").write_text("a.webp,10\nb c.webp,9\n")
    data = opened(tmp_path, root=str(tmp_path / "videos"))
    assert data.classes == ["9", "10"]
    assert list(zip(data.names, data.labels, strict=True)) == [("a.webp", 1), ("b c.webp", 0)]
    assert data.left_out == {"gone.webp": "not there (train.csv, line 3)"}
    assert len(opened(tmp_path, "val", root=str(tmp_path / "videos"))) == 2


def test_a_list_written_on_windows(tmp_path):
    animations(tmp_path, ["run/a.webp", "walk/b.webp"])
    (tmp_path / "train.csv").write_text(
        "path,label\r\nrun\\a.webp,1\r\nwalk\\b.webp,2\r\n", encoding="utf-16"
    )
    data = opened(tmp_path / "train.csv")
    assert (data.names, data.left_out) == (["run/a.webp", "walk/b.webp"], {})


def test_the_list_of_kinetics(tmp_path):
    animations(tmp_path, ["riding/abc_000012_000022.webp", "x/def.webp", "y/ghi_000000_000010.webp"])
    table = tmp_path / "kinetics.csv"
    table.write_text(
        "label,youtube_id,time_start,time_end,split\nriding mule,abc,12,22,train\nyoga,def,3,13,train\n"
        "yoga,ghi,0,10,validate\nyoga,missing,7,17,train\n"
    )
    with pytest.raises(FovealError, match="all videos must be of a part, or none"):
        opened(table)
    table.write_text(table.read_text().replace("validate", "val"))
    data = opened(table)
    assert data.names == ["riding/abc_000012_000022.webp", "x/def.webp"]
    assert data.classes == ["riding mule", "yoga"]
    assert list(data.left_out) == ["missing_000007_000017.mp4"]
    assert opened(table, "val").names == ["y/ghi_000000_000010.webp"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a.webp\n", "line must hold a path and a label, got 'a.webp' in .*list.csv, line 1"),
     ("path,label\na.webp,\n", "must have a label, got none in .*list.csv, line 2"),
     ("name,label\n", "not there|got none")],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path, text, reason):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(FovealError, match=reason):
        opened(tmp_path / "list.csv")


def test_data_that_are_no_clips_are_refused(tmp_path):
    with pytest.raises(
        FovealError, match="must be scenes, scenes:direction, or a folder or CSV file that exists"
    ):
        opened(tmp_path / "nowhere")
    with pytest.raises(FovealError, match="must hold videos in class folders, got none"):
        opened(tmp_path)
    animations(tmp_path, ["run/a.webp"])
    with pytest.raises(FovealError, match=r"at least 2 classes, got \['run'\]"):
        opened(tmp_path)
    with pytest.raises(FovealError, match=r"options of .* are root, classes.*, got 'fps'"):
        opened(tmp_path, fps=3)


def test_classes_fix_the_order_of_labels(tmp_path):
    animations(tmp_path, ["run/a.webp", "walk/b.webp"])
    assert open_clips(str(tmp_path), "train", classes=["walk", "run"], val_share=0.5).labels == [1, 0]
    with pytest.raises(FovealError, match="classes must be among sit, walk, got run"):
        open_clips(str(tmp_path), "train", classes=["sit", "walk"])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["run/train/a", "run/test/b", "walk/train/c", "walk/test/d"],
            "parts must lie around the class folders",
        ),
        (
            ["learn/run/a", "learn/walk/b", "exam/run/c", "exam/walk/d"],
            "the classes are exam, learn, or they are run",
        ),
    ],
)
def test_folders_of_videos_with_two_readings_are_refused_as_those_of_images(tmp_path, names, told):
    animations(tmp_path, [f"{name}.webp" for name in names], count=2)
    with pytest.raises(FovealError, match=told):
        opened(tmp_path)


def test_a_video_of_two_classes_is_refused(tmp_path):
    animations(tmp_path, ["a.webp", "b.webp"], count=2)
    (tmp_path / "train.csv").write_text("a.webp 0\nb.webp 1\na.webp 0\n")
    assert len(opened(tmp_path)) == 2
    (tmp_path / "test.csv").write_text("a.webp 1\n")
    message = r"one class, got 1 \(test.csv, line 1\) and 0 \(train.csv, line 1\) for a.webp"
    with pytest.raises(FovealError, match=message):
        opened(tmp_path)


def test_class_folders_in_both_spellings_of_unicode_are_one(tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    animations(tmp_path, [f"train/{composed}/a.webp", "train/run/b.webp", f"val/{apart}/c.webp"], count=2)
    assert opened(tmp_path).classes == [composed, "run"]
    assert opened(tmp_path, "val").labels == [0]


def test_lists_of_parts_beside_class_folders_are_named(tmp_path):
    animations(tmp_path, [f"{label}/{i}.webp" for label in ("run", "walk") for i in range(2)], count=2)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "trainlist01.txt").write_text("run/0.webp 1")
    (note,) = opened(tmp_path).notes
    assert note.startswith("lists/trainlist01.txt is not read")
