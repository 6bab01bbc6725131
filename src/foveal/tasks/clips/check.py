"""Every video of a split, decoded from its first frame to its last once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from foveal.data.findings import Finding
from foveal.tasks import Checked, Task
from foveal.tasks.check import ANY_SHARE, check_stored, few_of, of_the_whole
from foveal.tasks.clips.prediction import film_strip

FEW_FRAMES = 16
"""A video with fewer repeats itself in most clips."""


def check_clips(task: Task, data: str, split: str, options: dict[str, Any]) -> Checked:
    """What is wrong with the videos of a split: damage anywhere in them, a variable rate, few frames.

    Args:
        data: bundled clips or a person's own.
    """
    stored = not data.startswith("scenes")
    opened = task.open(data, split, {"max_unreadable": ANY_SHARE, **options} if stored else options)
    if not hasattr(opened, "examined"):
        return check_stored(task, data, split, options, lambda sample: [int(sample["label"])])
    findings = of_the_whole(opened, data)
    counts: Counter[int] = Counter()
    pictures: dict[str, Any] = {}
    frames = 0
    for name, label, video, reason in opened.examined():
        if reason:
            findings.append(Finding("videos that cannot be read", "warning", name, reason, name))
            continue
        counts[label] += 1
        frames += video.shape[1]
        told = []
        if video.variable_rate:
            told.append(("a variable frame rate", "frames are counted in their order, not by their times"))
        if video.shape[1] < FEW_FRAMES:
            told.append((f"videos of fewer than {FEW_FRAMES} frames", f"{video.shape[1]} frames"))
        findings += [Finding(kind, "note", name, text, name) for kind, text in told]
        if told:
            pictures[name] = lambda _findings, video=video: film_strip(video)
    findings += [
        Finding("videos that cannot be read", "warning", name, reason, name)
        for name, reason in opened.skipped.items()
        if not any(finding.image == name for finding in findings)
    ]
    classes = {name: counts[number] for number, name in enumerate(opened.classes)}
    findings += few_of(classes, split, "videos")
    return Checked(len(opened), classes, findings, pictures, f"{len(classes)} classes, {frames:,} frames")
