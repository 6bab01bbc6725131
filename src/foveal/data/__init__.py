"""Images and their truth: bundled scenes, folders, Parquet, torchvision sets; decoding and transforms.

A data set has ``classes`` and ``skipped`` and gives dictionaries of uint8 tensors. Heavy libraries (torchvision,
pyarrow, scikit-learn, Pillow) are imported by the functions that need them.
"""

from foveal.data.decode import decode_image, decode_mask
from foveal.data.scenes import Scenes, class_mask
from foveal.data.sources import as_tensors, open_dataset
from foveal.data.transforms import (
    JointTransform,
    eval_transform,
    segmentation_eval_transform,
    segmentation_train_transform,
    train_transform,
)

__all__ = [
    "JointTransform",
    "Scenes",
    "as_tensors",
    "class_mask",
    "decode_image",
    "decode_mask",
    "eval_transform",
    "open_dataset",
    "segmentation_eval_transform",
    "segmentation_train_transform",
    "train_transform",
]
