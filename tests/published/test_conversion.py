"""A file is converted as a whole or refused with what is wrong in it."""

import pytest
import torch

import foveal
from foveal.published import FORMATS, convert, export


@pytest.fixture(scope="module")
def state():
    net = foveal.create_model("cbam_resnet18", num_classes=3, variant="official")
    return export(net, "cbam-official")


def test_what_does_not_fit_is_named(state):
    first, bias = "layer1.0.cbam.ChannelGate.mlp.1.weight", "layer2.0.bn1.bias"
    broken = {name: value for name, value in state.items() if name != bias}
    broken |= {first: state[first].T.contiguous(), "bam1.weight": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"must be those of cbam-official, read as cbam_resnet18 \(CBAM variant 'official'"
    ) as caught:
        convert(broken)
    text = str(caught.value)
    assert f"missing: {bias};" in text
    assert "unexpected: bam1.weight;" in text
    assert text.endswith(f"mis-shaped: {first} ((64, 4) instead of (4, 64))")
    assert "\n" not in text


def test_a_note_lists_every_name_that_does_not_fit(state):
    """The line counts most of them."""
    absent = [name for name in state if name.startswith("layer4.1.")]
    broken = {name: value for name, value in state.items() if name not in absent[1:]}
    broken |= {absent[0]: torch.zeros(1), "bam1.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"cbam-official, read as cbam_resnet18 .* more; unexp") as caught:
        convert(broken)
    (note,) = caught.value.__notes__
    assert {line.split(":")[0] for line in note.splitlines()} == {*absent, "bam1.weight"}
    assert f"{absent[0]}: (1,) instead of (512, 512, 3, 3)" in note
    assert "bam1.weight: (2,) instead of nothing" in note


def test_a_cut_file_is_said_to_lack_whole_stages(state):
    cut = dict(list(state.items())[:40])
    with pytest.raises(ValueError, match=r"\(ResNet-34\), got \[2\] and no tensors of 3 of the 4 stages$"):
        convert(cut)


@pytest.mark.parametrize("value", ["high", 2, -0.1, float("nan"), True, None])
def test_what_is_dropped_is_a_share(state, value):
    with pytest.raises(ValueError, match=r"^drop_rate must be a number from 0 to 1, got "):
        convert(state, drop_rate=value)


def test_files_from_before_batches_were_counted_are_taken(state):
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert export(convert(old), "cbam-official").keys() == state.keys()
    some = {name: value for name, value in state.items() if name != "bn1.num_batches_tracked"}
    with pytest.raises(ValueError, match=r"(?m)missing: bn1\.num_batches_tracked$"):
        convert(some)


def test_half_precision_becomes_float32_without_loss(state):
    half = {name: v.half() if v.is_floating_point() else v for name, v in state.items()}
    net = convert(half)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert torch.equal(net.fc.weight, half["fc.weight"].float())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged_are_refused(state, value):
    with pytest.raises(ValueError, match=r"must be finite numbers, got NaN or infinity in fc\.bias$"):
        convert({**state, "fc.bias": torch.full_like(state["fc.bias"], value)})


def test_whole_numbers_are_no_weights(state):
    with pytest.raises(ValueError, match=r"floating-point numbers, got fc\.weight \(torch\.int64\)"):
        convert({**state, "fc.weight": state["fc.weight"].long()})


def test_the_network_owns_its_memory_and_trains(state):
    before = state["fc.weight"].clone()
    net = convert(state)
    assert all(p.requires_grad for p in net.parameters())
    with torch.no_grad():
        net.fc.weight.zero_()
    assert torch.equal(state["fc.weight"], before)


def test_an_export_is_a_copy_also_of_a_compiled_network(state):
    net = convert(state)
    out = export(torch.compile(net, backend="eager"), "cbam-official")  # type: ignore[arg-type]
    assert out.keys() == state.keys()
    with torch.no_grad():
        net.fc.weight.zero_()
    assert torch.equal(out["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("se_resnet18", "timm-se"),
        ("legacy_se_resnet18", "timm-legacy-se"),
        ("se_resnet18", "pytorchcv-seresnet"),
        ("cbam_resnet18", "pytorchcv-cbam"),
        ("cbam_resnet18", "cbam-official"),
    ],
)
def test_options_reach_the_network_and_its_file(name, format):
    variant = {"variant": "official"} if name == "cbam_resnet18" else {}
    net = convert(export(foveal.create_model(name, **variant), format), drop_rate=0.25)
    assert net.foveal_info["converted_from"] == format
    assert net.drop_rate == 0.25
    assert net.foveal_model["kwargs"]["drop_rate"] == 0.25


def test_another_network_is_refused():
    plain = foveal.create_model("resnet18").state_dict()
    with pytest.raises(
        ValueError, match=r"one of the formats timm-se, .* got 122 tensors of a plain ResNet without"
    ):
        convert(plain)
    with pytest.raises(
        ValueError,
        match=r"must be those of timm-se, read as se_resnet18 .* missing: layer1\.0\.se\.fc1\.weight, .* more",
    ):
        convert(plain, "timm-se")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_refuses_strange_names_by_a_message(name):
    for strange in ({"a": torch.zeros(2)}, {"layer1.0.conv1.weight": torch.zeros(1)}):
        with pytest.raises(ValueError, match=rf"^(in files of {name}, |the weights must be those of {name})"):
            convert(strange, name)
    with pytest.raises(ValueError, match="given a network of its kind, got Linear"):
        export(torch.nn.Linear(2, 2), name)


def test_options_and_formats_that_do_not_exist(state):
    with pytest.raises(ValueError, match=r"cbam-official takes drop_rate, drop_path_rate, got variant"):
        convert(state, variant="paper")
    with pytest.raises(ValueError, match=r"format must be one of timm-se, .* got 'cbam'"):
        convert(state, "cbam")
    with pytest.raises(ValueError, match=r"format must be one of timm-se, .* got 'cbam'"):
        export(torch.nn.Linear(2, 2), "cbam")
