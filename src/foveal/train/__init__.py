"""Train, evaluate and use networks. Names are imported when first asked for: reading options needs no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.train.config import TrainConfig as TrainConfig
    from foveal.train.inference import Evaluation as Evaluation
    from foveal.train.inference import Prediction as Prediction
    from foveal.train.inference import evaluate as evaluate
    from foveal.train.inference import predict as predict
    from foveal.train.lean import train_in_memory as train_in_memory
    from foveal.train.mask_evaluation import MaskEvaluation as MaskEvaluation
    from foveal.train.mask_evaluation import evaluate_masks as evaluate_masks
    from foveal.train.mask_prediction import MaskPrediction as MaskPrediction
    from foveal.train.mask_prediction import predict_masks as predict_masks
    from foveal.train.run import Interrupted as Interrupted
    from foveal.train.run import RunResult as RunResult
    from foveal.train.run import fit as fit

_HOME = {
    "Evaluation": "inference",
    "Interrupted": "run",
    "MaskEvaluation": "mask_evaluation",
    "MaskPrediction": "mask_prediction",
    "Prediction": "inference",
    "RunResult": "run",
    "TrainConfig": "config",
    "evaluate": "inference",
    "evaluate_masks": "mask_evaluation",
    "fit": "run",
    "predict": "inference",
    "predict_masks": "mask_prediction",
    "train_in_memory": "lean",
}

__all__ = [
    "Evaluation",
    "Interrupted",
    "MaskEvaluation",
    "MaskPrediction",
    "Prediction",
    "RunResult",
    "TrainConfig",
    "evaluate",
    "evaluate_masks",
    "fit",
    "predict",
    "predict_masks",
    "train_in_memory",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
