"""Names in no known format are answered with what is nearest and why, never with names that every ResNet has."""

import pytest
import torch

import foveal
from foveal.errors import FovealError
from foveal.published import convert, export


@pytest.fixture(scope="module")
def state():
    return export(foveal.create_model("cbam_resnet18", variant="official", num_classes=2), "cbam-official")


def refusal(state) -> str:
    with pytest.raises(FovealError, match="one of the formats") as caught:
        convert(state)
    return str(caught.value)


def test_names_that_speak_for_and_against_the_nearest_format(state):
    said = refusal({name.replace("conv1.weight", "stem.weight"): v for name, v in state.items()})
    assert "nearest is cbam-official: for it speaks layer1.0.cbam.ChannelGate" in said
    assert "against it no name that begins conv1." in said


def test_ordinary_names_are_not_listed(state):
    said = refusal({**{n: v for n, v in state.items() if "cbam" not in n}, "mystery.weight": torch.zeros(1)})
    assert "these are in no plain ResNet: mystery.weight" in said
    assert "nearest" not in said


def test_a_plain_network_is_called_one(state):
    assert "of a plain ResNet without blocks" in refusal({n: v for n, v in state.items() if "cbam" not in n})


def test_a_known_format_below_a_prefix_is_offered_with_the_prefix(state):
    both = {f"encoder_{one}.{name}": value for one in "qk" for name, value in state.items()}
    said = refusal(both)
    assert "below 'encoder_q.' they fit cbam-official" in said
    assert convert(both, prefix="encoder_q").foveal_info["converted_from"] == "cbam-official"


def test_a_message_stays_short_whatever_the_names():
    assert len(refusal({"x" * 10**5 + str(i): torch.zeros(1) for i in range(50)})) < 3000
