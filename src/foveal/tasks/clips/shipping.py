"""How an exported network of clips is used: see `foveal.tasks.shipping`."""

from __future__ import annotations

import numpy as np
from PIL import Image

from foveal.model_info import ModelInfo
from foveal.tasks.classify.shipping import answer, same_label
from foveal.tasks.shipping import Path, Shipment, in_bytes, network_input, resize


def ship(info: ModelInfo, frames: int, stride: int, short: str, shorter: int) -> Shipment:
    """Logits (b, classes) of clips of so many frames, in batches of any size.

    Args:
        frames, stride, short: which frames of a video make the clip.
        shorter: to which the shorter side of a frame is resized before the crop.
    """
    clip = {"frames": frames, "stride": stride, "short": short}
    return Shipment(
        outputs=("logits",),
        call=lambda net, clips: (net(clips),),
        rebuild=lambda outputs: outputs[0],
        agreement=same_label,
        agreement_of="top-1",
        preprocessing={**clip, "resize_shorter": shorter, "crop": info.image_size},
        script=(read, read_video, in_bytes, resize, network_input, chosen, prepare, answer),
        free=(0,),
    )


def read(name, mode, top=65535):
    """How many frames a video, an animated image or a folder of images has, and a function from numbers to frames."""
    import re

    if Path(name).suffix.lower() in (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg"):
        return read_video(name, mode)
    if Path(name).is_dir():
        kinds = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
        files = [one for one in Path(name).iterdir() if one.suffix.lower() in kinds]
        # frame 2 comes before frame 10
        files.sort(key=lambda one: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", one.name)])
        return len(files), lambda numbers: [in_bytes(Image.open(files[n]), mode) for n in numbers]
    video = Image.open(name)

    def frames(numbers):
        for n in numbers:
            video.seek(n)
            yield in_bytes(video, mode)

    return getattr(video, "n_frames", 1), frames


def read_video(name, mode):
    """The same of a video file, whose frames PyAV decodes."""
    try:
        import av
    except ImportError:
        raise SystemExit(f"reading {name} needs PyAV: pip install av") from None
    with av.open(str(name), "r") as file:
        packets = file.demux(file.streams.video[0])
        count = sum(1 for one in packets if one.pts is not None and one.size and not one.is_discard)

    def frames(numbers):
        kept, wanted = {}, set(numbers)
        with av.open(str(name), "r") as file:
            for n, one in enumerate(file.decode(video=0)):
                if n in wanted:
                    # upright, as its file says
                    pixels = np.rot90(one.to_ndarray(format="rgb24"), round(one.rotation / 90) % 4)
                    kept[n] = Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)
        return [kept[n] for n in numbers]

    return count, frames


def chosen(count, facts):
    """The numbers of the frames of a clip in the middle; behind the last one it begins again, or stays."""
    start = max(0, count - (facts["frames"] - 1) * facts["stride"] - 1) // 2
    wanted = [start + i * facts["stride"] for i in range(facts["frames"])]
    return [n % count if facts["short"] == "loop" else min(n, count - 1) for n in wanted]


def prepare(video, facts):
    """Of each frame the shorter side resized, the centre cut out; the frames of a clip one after the other."""
    count, frames = video
    planes = []
    for image in frames(chosen(count, facts)):
        width, height = (round(facts["resize_shorter"] / min(image.size) * side) for side in image.size)
        pixels, side = resize(np.asarray(image), height, width), facts["crop"]
        top, left = (height - side) // 2, (width - side) // 2
        planes.append(network_input(pixels[top : top + side, left : left + side], facts))
    return np.stack(planes, axis=2)
