"""Bundled data: cluttered scenes of handwritten digits on photographs, drawn on the fly from scikit-learn's files."""

from foveal.data.scenes.boxes import SceneBoxes
from foveal.data.scenes.cue import CueScenes, local_scenes
from foveal.data.scenes.dataset import SceneMasks, Scenes, class_mask
from foveal.data.scenes.digits import Digits
from foveal.data.scenes.moving import MovingDigits, direction_clips

__all__ = [
    "CueScenes",
    "Digits",
    "MovingDigits",
    "SceneBoxes",
    "SceneMasks",
    "Scenes",
    "class_mask",
    "direction_clips",
    "local_scenes",
]
