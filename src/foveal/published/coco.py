"""What published detectors do not say of themselves: the names of their classes, and the images they are made for."""

from typing import Any

IMAGE_SIZE = 800


def coco_classes(num_classes: int) -> list[str]:
    """Names in the order of the outputs: COCO's for 80 (counted through) and 91 (by category id), numbers for others.

    Ids that COCO left out are called ``N/A`` with their number, as every class needs a name of its own.

    Example:
        >>> coco_classes(91)[1], coco_classes(91)[12], coco_classes(80)[0], coco_classes(3)
        ('person', 'N/A 12', 'person', ['class 0', 'class 1', 'class 2'])
    """
    if num_classes not in (80, 91):
        return [f"class {i}" for i in range(num_classes)]
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    there = [name not in ("N/A", "__background__") for name in names]
    if num_classes == 80:
        return [name for name, is_class in zip(names, there, strict=True) if is_class]
    return [name if there[i] else f"N/A {i}" for i, name in enumerate(names)]


def detection_info(net: Any) -> dict[str, Any]:
    """What the weights file says of a published detector beside its weights, see `foveal.model_info.ModelInfo`."""
    return {
        "task": "detect",
        "classes": coco_classes(net.num_classes),
        "image_size": IMAGE_SIZE,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "model": net.foveal_model["name"],
    }
