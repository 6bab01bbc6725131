"""Frames of videos are read exactly, and what is wrong with a file is said in one line."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.videos import flat_frames, known, write_animation, write_frames, write_video

from foveal.data import video
from foveal.data.video import Video, find_videos, frame_files, read_clip
from foveal.errors import FovealError

ASKED = [0, 7, 15, 39, 15, 3]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.webm", "libvpx"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("b.avi", "libx264"),
     ("a.mpg", "mpeg1video")],
)  # fmt: skip
def test_any_frames_of_a_file_in_any_order(tmp_path, name, codec):
    pytest.importorskip("av")
    write_video(tmp_path / name, flat_frames(), codec)
    found = Video(tmp_path / name)
    assert found.shape == (3, 40, 48, 64)
    assert known(found[:, ASKED]) == ASKED
    assert known(found[:]) == list(range(40))
    assert not found.variable_rate


def test_the_colours_of_a_frame_are_converted_in_the_reading_process_alone():
    """FFmpeg's default is a thread a core for each frame: reading processes share the cores by videos."""
    asked = {}

    class Frame:
        rotation = 0

        def to_ndarray(self, **options):
            asked.update(options)
            return np.zeros((4, 6, 3), np.uint8)

    assert video.frame_pixels(Frame(), 3).shape == (3, 4, 6)
    assert asked == {"format": "rgb24", "threads": 1}


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_animated_images_need_pillow_alone(tmp_path, name, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    write_animation(tmp_path / name, flat_frames())
    found = Video(tmp_path / name)
    assert found.shape == (3, 40, 48, 64)
    assert known(found[:, ASKED]) == ASKED


def test_a_lossless_animation_comes_back_to_the_bit(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 9, 7, 3), dtype=np.uint8)
    write_animation(tmp_path / "a.webp", frames)
    assert torch.equal(Video(tmp_path / "a.webp")[:], torch.from_numpy(frames).permute(3, 0, 1, 2))


def test_a_folder_of_frames_is_a_video_in_the_order_of_its_numbers(tmp_path):
    write_frames(tmp_path / "v", flat_frames(12))
    found = Video(tmp_path / "v")
    assert known(found[:, [11, 2, 10]]) == [11, 2, 10]
    assert found[:, 3].shape == (3, 48, 64)
    assert [path.name for path in frame_files(tmp_path / "v")][:3] == ["f0.png", "f1.png", "f2.png"]


def test_grey_videos(tmp_path):
    write_frames(tmp_path / "v", flat_frames(3))
    assert Video(tmp_path / "v", channels=1)[:, [2]].shape == (1, 1, 48, 64)


def test_a_variable_rate_is_noticed_and_frames_are_counted(tmp_path):
    pytest.importorskip("av")
    times = [*range(20), *range(20, 80, 3)]
    write_video(tmp_path / "a.mp4", flat_frames(), times=times)
    found = Video(tmp_path / "a.mp4")
    assert found.variable_rate
    assert known(found[:, ASKED]) == ASKED


def test_frames_far_into_a_file_without_an_index(tmp_path):
    """In program streams a place is found by guess, and two frames may have one time."""
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 40, (60, 48, 64, 3), dtype=np.uint8)
    frames = flat_frames(60) // 2 + noise
    write_video(tmp_path / "a.mpg", frames, "mpeg2video")
    found = Video(tmp_path / "a.mpg")
    every = found[:]
    for number in range(0, 60, 7):
        assert torch.equal(found[:, number], every[:, number]), number
    assert not found.variable_rate


def test_every_frame_of_a_file_in_fragments(tmp_path):
    """As browsers and cameras write them while they record; a place in them is found behind the frame."""
    pytest.importorskip("av")
    how = {"movflags": "frag_keyframe+empty_moov"}
    write_video(tmp_path / "a.mp4", flat_frames(), options={"crf": "5", "g": "10"}, container=how)
    found = Video(tmp_path / "a.mp4")
    assert [known(found[:, [number]]) for number in range(40)] == [[number] for number in range(40)]


def rotated(data, degrees):
    """A file of MPEG-4 that says its frames are to be turned by so much with the clock."""
    turns = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    at = data.index(b"tkhd") + 4 + 40
    values = np.array([turns[0], turns[1], 0, turns[2], turns[3], 0, 0, 0, 16384]) * 65536
    return data[:at] + values.astype(">i4").tobytes() + data[at + 36 :]


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_come_upright(tmp_path, degrees):
    pytest.importorskip("av")
    frames = flat_frames(4)
    frames[:, :24, :32] = 250
    write_video(tmp_path / "a.mp4", frames)
    path = tmp_path / "turned.mp4"
    path.write_bytes(rotated((tmp_path / "a.mp4").read_bytes(), degrees))
    shown = np.rot90(frames, -degrees // 90, axes=(1, 2))
    found = Video(path)
    assert found.shape[2:] == shown.shape[1:3]
    assert np.abs(found[:].permute(1, 2, 3, 0).numpy().astype(int) - shown).mean() < 6


def sound_alone(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path):
    pytest.importorskip("av")
    write_video(tmp_path / "a.mp4", flat_frames())
    write_video(tmp_path / "a.webm", flat_frames(), "libvpx")
    write_video(tmp_path / "one.mp4", flat_frames(1))
    for name in ("a.mp4", "a.webm"):
        half = (tmp_path / name).read_bytes()
        (tmp_path / f"half-{name}").write_bytes(half[: len(half) // 2])
    sound_alone(tmp_path / "sound.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.webm").write_text("#EXTM3U\nhttp://127.0.0.1/a.ts\n")
    for name, reason in {
        "half-a.mp4": "truncated or damaged video, got .*half-a.mp4: Invalid data found when processing input$",
        "half-a.webm": "truncated video, got 0.5.* of 1.6 seconds in .*half-a.webm",
        "sound.mp4": "must have a video stream, got none in .*sound.mp4",
        "one.mp4": "at least 2 frames, got 1 in .*one.mp4",
        "empty.mp4": "got .*empty.mp4",
        "text.webm": "got .*text.webm",
    }.items():
        with pytest.raises(FovealError, match=reason) as caught:
            Video(tmp_path / name)[:]
        assert "\n" not in str(caught.value)


def test_damage_in_the_middle_is_named(tmp_path):
    pytest.importorskip("av")
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", rng.integers(0, 256, (12, 64, 64, 3), dtype=np.uint8))
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    at = data.index(b"mdat") + 4
    data[at : at + 40_000] = b"\xff" * 40_000
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(FovealError, match=r"a\.mp4"):
        Video(tmp_path / "a.mp4")[:]


def test_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch):
    write_animation(tmp_path / "a.webp", flat_frames())
    found = Video(tmp_path / "a.webp")
    monkeypatch.setattr(video, "MAX_BYTES", 10 * 3 * 48 * 64)
    assert found[:, range(10)].shape[1] == 10
    with pytest.raises(FovealError, match="at most 92,160 bytes together, got 11 of 64x48"):
        found[:, range(11)]
    monkeypatch.setattr(video, "MAX_PIXELS", 100)
    with pytest.raises(FovealError, match="at most 100 pixels, got 64x48"):
        Video(tmp_path / "a.webp")


def test_frames_of_two_sizes_are_refused(tmp_path):
    write_frames(tmp_path / "v", flat_frames(3))
    Image.new("RGB", (10, 10)).save(tmp_path / "v" / "f3.png")
    with pytest.raises(FovealError, match=r"one size, got 64x48 and 10x10 \(frame 3\)"):
        Video(tmp_path / "v")[:]


def test_without_pyav_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"0" * 100)
    with pytest.raises(FovealError, match=r"needs PyAV.*foveal\[video\]"):
        Video(tmp_path / "a.mp4")


def test_videos_are_found_at_any_depth_and_once(tmp_path):
    write_frames(tmp_path / "cats" / "v1", flat_frames(2))
    (tmp_path / "cats" / "deep").mkdir()
    for name in ("cats/a.mp4", "cats/deep/b.GIF", "cats/.hidden.mp4", "cats/deep/notes.txt"):
        (tmp_path / name).write_bytes(b"0")
    (tmp_path / "cats" / "deep" / "circle").symlink_to(tmp_path, target_is_directory=True)
    assert find_videos(tmp_path) == ["cats/a.mp4", "cats/deep/b.GIF", "cats/v1"]


def test_a_clip_is_read_by_what_chooses_its_frames(tmp_path):
    write_animation(tmp_path / "a.webp", flat_frames())
    assert known(read_clip(tmp_path / "a.webp", lambda count: [count - 1, 0])) == [39, 0]
