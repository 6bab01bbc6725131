"""Small videos for tests: each frame has one brightness, by which it is known."""

from fractions import Fraction

import numpy as np

STEP = 6


def flat_frames(count=40, height=48, width=64):
    """(count, h, w, 3) uint8; frame n has the value 6 n, and a lighter upper left corner."""
    frames = np.zeros((count, height, width, 3), dtype=np.uint8)
    frames += (STEP * np.arange(count, dtype=np.uint8))[:, None, None, None]
    return frames


def write_video(path, frames, codec="libx264", times=None, options=None, container=None):
    """A file of one video stream, 25 units of time a second; ``times`` are those of the frames, in units.

    ``options`` are those of the codec, ``container`` those of the file.
    """
    import av

    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 10_000_000
        stream.options = options or ({"crf": "5", "g": "10"} if codec == "libx264" else {})
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number if times is None else times[number], Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def write_animation(path, frames):
    """An animated image of frames (n, h, w, 3)."""
    from PIL import Image

    first, *others = [Image.fromarray(one) for one in frames]
    first.save(
        path, save_all=True, append_images=others, **({"lossless": True} if path.suffix == ".webp" else {})
    )


def write_frames(folder, frames):
    """A folder of PNG files f0.png, f1.png, ..."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number, one in enumerate(frames):
        Image.fromarray(one).save(folder / f"f{number}.png")


def known(clip):
    """The numbers of frames (3, t, h, w) of `flat_frames`."""
    return (clip.float().mean((0, 2, 3)) / STEP).round().int().tolist()
