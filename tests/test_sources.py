"""What to predict, as it comes: frames of videos, of a camera, files that appear in a folder."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal.predict
from foveal import sources
from foveal.errors import FovealError
from foveal.inference import predictor
from foveal.predict import predict, predict_as_they_come
from tests.data.videos import write_video

RED, BLUE = (200, 30, 20), (20, 30, 200)


@pytest.fixture
def film(tmp_path):
    """Six frames: three red, three blue."""
    frames = np.zeros((6, 32, 48, 3), dtype=np.uint8)
    frames[:3], frames[3:] = RED, BLUE
    write_video(tmp_path / "film.mp4", frames)
    return tmp_path / "film.mp4"


def test_the_frames_of_a_video_are_answered_for_in_order(coloured_run, film):
    done = predict(coloured_run.weights, [film], every=2, inference={"top": 1}, device="cpu")
    rows = [line.split(",")[:2] for line in done.text.splitlines()[1:]]
    named = [str(film.with_name(f"film#{number:06d}.mp4")) for number in (0, 2, 4)]
    assert rows == [[named[0], "red"], [named[1], "red"], [named[2], "blue"]]
    assert done.unreadable == {}


def test_a_truncated_video_is_named_and_the_images_beside_it_are_answered_for(coloured_run, film, tmp_path):
    film.write_bytes(film.read_bytes()[:300])
    Image.new("RGB", (40, 20), RED).save(tmp_path / "good.png")
    done = predict(coloured_run.weights, [film, tmp_path / "good.png"], device="cpu")
    assert done.count == 1
    assert list(done.unreadable) == [str(film)]
    with pytest.raises(FovealError, match="every must be at least 1, got 0"):
        predict(coloured_run.weights, [film], every=0, device="cpu")


def test_videos_in_a_folder_are_answered_for_and_what_is_left_out_is_named(coloured_run, film):
    Image.new("RGB", (40, 20), RED).save(film.parent / "good.png")
    (film.parent / "IMG_1").write_bytes((film.parent / "good.png").read_bytes())
    (film.parent / "notes.txt").write_text("no image")
    done = predict(coloured_run.weights, [film.parent], every=3, inference={"top": 1}, device="cpu")
    rows = [line.split(",")[:2] for line in done.text.splitlines()[1:]]
    assert [label for _, label in rows] == ["red", "blue", "red"]
    assert done.left_out == {str(film.parent / "IMG_1"): "a PNG by its content, not by its suffix"}
    (film.parent / "in").mkdir()
    (film.parent / "in" / "x.psd").write_bytes(b"8BPS")
    with pytest.raises(
        FileNotFoundError, match=r"got none in .*in; x\.psd: images of this kind are not read"
    ):
        predict(coloured_run.weights, [film.parent / "in"], device="cpu")


def test_a_file_counts_once_it_no_longer_grows_and_once_only(tmp_path):
    """It is written in two parts, with a look at the folder between them."""
    (tmp_path / "old.png").write_bytes(b"old")
    steps = iter(
        [
            lambda: (tmp_path / "new.png").write_bytes(b"half"),
            lambda: (tmp_path / "new.png").write_bytes(b"the whole"),
            lambda: None,
            lambda: None,
        ]
    )
    ended = []

    def wait(_):
        step = next(steps, None)
        ended.append(True) if step is None else step()

    def find(folder):
        return [path for path in folder.iterdir() if path.suffix == ".png"]

    seen = [
        (one.name, one.read_bytes()) if one else None
        for one in sources.watched(tmp_path, find, lambda: bool(ended), {}, wait)
    ]
    assert [one for one in seen if one] == [("old.png", b"old"), ("new.png", b"the whole")]
    assert seen[-1] is None


def test_a_watched_folder_is_answered_for_until_ctrl_c(coloured_run, tmp_path, monkeypatch):
    folder, waits, printed = tmp_path / "in", [], []
    folder.mkdir()
    Image.new("RGB", (40, 20), RED).save(folder / "a.png")

    def wait(_):
        waits.append(len(printed))
        if len(waits) == 2:
            Image.new("RGB", (40, 20), BLUE).save(folder / "b.png")
            (folder / "c.png").write_bytes(b"no image")
            (folder / "d.png").write_bytes(b"half")
            write_video(folder / "e.mp4", np.full((4, 32, 48, 3), BLUE, dtype=np.uint8))
        if len(waits) == 5:
            # copying it had paused
            Image.new("RGB", (40, 20), RED).save(folder / "d.png")
        if len(waits) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started the tests in the background
    whole = sources.watched
    monkeypatch.setattr(foveal.predict, "watched", lambda *given: whole(*given, wait))
    done = predict_as_they_come(
        predictor(coloured_run.weights, "cpu"), folder, printed.append, inference={"top": 1}, every=2
    )
    rows = [line.split(",")[:2] for line in "".join(printed).splitlines()]
    assert rows == [
        ["file", "label"],
        [str(folder / "a.png"), "red"],
        [str(folder / "b.png"), "blue"],
        *([str(folder / f"e#{number:06d}.mp4"), "blue"] for number in (0, 2)),
        [str(folder / "d.png"), "red"],
    ]
    # each as soon as it was known, the first before the second was there
    assert waits[1] == 1
    assert (done.count, list(done.unreadable)) == (5, [str(folder / "c.png")])
    assert signal.getsignal(signal.SIGINT) == before


def test_a_camera_is_answered_for_until_ctrl_c(coloured_run, tmp_path, monkeypatch):
    """FFmpeg's test picture in place of a camera; rows go to a file."""
    monkeypatch.setattr(
        sources, "CAMERAS", {"linux": ("testsrc=size=48x32:rate=25", "lavfi"), "darwin": ("testsrc", "lavfi")}
    )
    ready, shown = predictor(coloured_run.weights, "cpu"), []
    write = ready.task.write

    def counted(*given):
        shown.append(given)
        if len(shown) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return write(*given)

    monkeypatch.setattr(type(ready.task), "write", lambda self, *given: counted(*given), raising=False)
    out = tmp_path / "rows.csv"
    done = predict_as_they_come(ready, "camera:0", shown.append, out=out, every=10)
    names = [line.split(",")[0] for line in out.read_text().splitlines()]
    assert names == ["file", "camera-0#000000", "camera-0#000010", "camera-0#000020"]
    assert (done.count, done.out) == (3, out)


def test_no_such_camera_is_one_line(said, coloured_run, tmp_path):
    status, _, errors = said("predict", "camera:77", "--weights", coloured_run.weights)
    assert status == 2
    assert "camera:77 must be a camera that can be read" in errors
    assert len(errors.splitlines()) == 1
    status, _, errors = said("predict", "camera:one", "--weights", coloured_run.weights)
    assert "a camera is given by its number" in errors
    status, _, errors = said("predict", tmp_path, tmp_path, "--watch", "--weights", coloured_run.weights)
    assert (status, "answers for one source" in errors) == (2, True)
    status, _, errors = said("predict", Path(__file__), "--watch", "--weights", coloured_run.weights)
    assert (status, "must be a folder, or camera:0" in errors) == (2, True)
