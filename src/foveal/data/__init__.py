"""Images and their truth: bundled scenes, folders, Parquet, torchvision sets; decoding and transforms.

A data set gives dictionaries of uint8 tensors and says what it skipped and left out. Heavy libraries (torchvision,
pyarrow, scikit-learn, Pillow) are imported by the functions that need them.
"""

from foveal.data.dataset import StoredDataset, median_size
from foveal.data.decode import decode_image
from foveal.data.joint import JointTransform
from foveal.data.masks import decode_mask
from foveal.data.opening import ImageKindError, LabelError
from foveal.data.scenes import CueScenes, SceneBoxes, SceneMasks, Scenes, class_mask
from foveal.data.sources import open_dataset
from foveal.data.stacking import as_tensors
from foveal.data.transforms import (
    detection_eval_transform,
    detection_train_transform,
    eval_transform,
    segmentation_eval_transform,
    segmentation_train_transform,
    train_transform,
)

__all__ = [
    "CueScenes",
    "ImageKindError",
    "JointTransform",
    "LabelError",
    "SceneBoxes",
    "SceneMasks",
    "Scenes",
    "StoredDataset",
    "as_tensors",
    "class_mask",
    "decode_image",
    "decode_mask",
    "detection_eval_transform",
    "detection_train_transform",
    "eval_transform",
    "median_size",
    "open_dataset",
    "segmentation_eval_transform",
    "segmentation_train_transform",
    "train_transform",
]
