"""One image through a network: its answer and what its attention sites received, or a reason."""

from pathlib import Path

import pytest
import torch

from foveal.inference import predictor
from foveal.look.predict import predict_recorded

VIEW = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_answer_is_the_predictors_own(weights: Path) -> None:
    network = predictor(weights, "cpu")
    answer, seen = predict_recorded(network, VIEW)
    assert answer.labels == network(VIEW).labels
    assert list(seen) == ["layer1.0.bn2.cbam", "layer2.0.nonlocal_", "layer3.0.dual"]
    assert seen["layer2"].weights == "one.safetensors"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_not_finite_is_refused(weights: Path, value: float) -> None:
    network = predictor(weights, "cpu")
    network.net.fc.weight.data[3, 5] = value
    with pytest.raises(ValueError, match=r"must answer with finite numbers.*from one.safetensors"):
        predict_recorded(network, VIEW)
