"""Runs that begin from weights trained before."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import foveal
from foveal.compare.plan import plan_comparison
from foveal.errors import FovealError
from foveal.model_info import ModelInfo
from foveal.train import TrainConfig, fit
from foveal.train.network import build_network
from foveal.train.start import network_from, start_lines, with_start

OLD = ["cat", "dog", "bird"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=3), "se", reduction=4, stages=(3,))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    info = ModelInfo("classify", OLD, 32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), model="cifar_resnet8")
    foveal.save(net, tmp_path / "old.safetensors", **info.to_dict())
    return tmp_path / "old.safetensors"


def begin(weights: Path, **options) -> TrainConfig:
    return with_start(TrainConfig(from_weights=str(weights), **options))


def test_with_the_same_classes_every_weight_is_kept(weights):
    old, new = foveal.load(weights), network_from(begin(weights), OLD)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())
    assert "all weights and classes are kept" in start_lines(begin(weights), OLD)[0]


def test_with_other_classes_rows_follow_their_names_and_the_rest_is_kept(weights):
    old = foveal.load(weights).state_dict()
    wanted = ["bird", "fish", "cat", "cow"]
    new = build_network(begin(weights, seed=5), wanted).state_dict()
    assert new["fc.weight"].shape == (4, 64)
    for layer in ("fc.weight", "fc.bias"):
        assert torch.equal(new[layer][0], old[layer][2])
        assert torch.equal(new[layer][2], old[layer][0])
        assert not torch.equal(new[layer][1], old[layer][1])
    others = [name for name in old if not name.startswith("fc.")]
    assert others
    assert all(torch.equal(old[name], new[name]) for name in others)
    again = build_network(begin(weights, seed=5), wanted).state_dict()
    assert torch.equal(new["fc.weight"], again["fc.weight"])
    [line] = start_lines(begin(weights), wanted)
    assert "of fc 2 classes (bird, cat) kept, 2 classes (fish, cow) new, 1 class (dog) dropped" in line


def test_as_many_other_classes_are_not_taken_for_the_old_ones(weights):
    old = foveal.load(weights).state_dict()
    new = build_network(begin(weights), ["x", "dog", "z"]).state_dict()
    assert torch.equal(new["fc.weight"][1], old["fc.weight"][1])
    assert not torch.equal(new["fc.weight"][0], old["fc.weight"][0])


def test_segmentation_networks_keep_rows_of_every_classifier(tmp_path):
    net = foveal.create_model("danet_resnet18", num_classes=3, width=64)
    info = ModelInfo("segment", OLD, 64, extra={"ignore_index": None})
    foveal.save(net, tmp_path / "old.safetensors", **info.to_dict())
    config = begin(tmp_path / "old.safetensors", task="segment")
    new = network_from(config, ["dog", "sky"]).state_dict()
    for name in ("classify.1", "classify_position.1", "classify_channel.1"):
        assert torch.equal(new[f"{name}.weight"][0], net.state_dict()[f"{name}.weight"][1])
        assert new[f"{name}.weight"].shape[0] == 2


def test_a_run_from_weights_starts_where_they_ended_and_resumes_without_them(tmp_path):
    data = {"data_options": {"length": 64}, "batch_size": 32, "epochs": 1}
    first = fit(
        TrainConfig(insert=["se(reduction=4)@residual:3"], out=str(tmp_path / "a"), **data), quiet=True
    )
    source = tmp_path / "moved.safetensors"
    source.write_bytes(first.weights.read_bytes())
    config = TrainConfig(from_weights=str(source), lr=0.0, out=str(tmp_path / "b"), **data)
    assert (config.model, config.insert) == ("", [])
    second = fit(config, quiet=True)
    before, after = foveal.load(source), foveal.load(second.weights)
    assert all(torch.equal(p, dict(after.named_parameters())[n]) for n, p in before.named_parameters())
    assert second.blocks, "the block of the weights is reported"
    assert second.config.model == "cifar_resnet8"
    source.unlink()
    third = fit(resume=str(tmp_path / "b"), quiet=True)
    assert third.rows == second.rows


def test_preprocessing_size_and_a_gentle_rate_come_from_the_weights(weights):
    from foveal.train.network import describe_network
    from foveal.train.parts import open_parts

    config = begin(weights, data_options={"length": 8, "size": 48})
    data = open_parts(config)
    info = describe_network(config, build_network(config, list(data["train"].classes)), data)
    assert (info.mean, info.std, info.image_size) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 32)
    assert config.lr == pytest.approx(TrainConfig().lr / 10)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "resnet18"}, "model must be that of"),
        ({"model_options": {"in_chans": 1}}, "model_options must be that of"),
        ({"task": "segment"}, "must be of task segment"),
        ({"pretrained": True}, "exclude each other"),
    ],
)
def test_another_network_than_that_of_the_weights_is_refused(weights, options, words):
    with pytest.raises(FovealError, match=words):
        begin(weights, **options)


def test_weights_that_do_not_name_their_model_are_refused(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    foveal.save(net, tmp_path / "own.safetensors", **ModelInfo("classify", OLD, 8).to_dict())
    with pytest.raises(FovealError, match="must name their model"):
        begin(tmp_path / "own.safetensors")


def test_a_comparison_begins_every_variant_from_the_weights(weights):
    from foveal.compare.variants import NONE, build, parse_variants

    config = replace(begin(weights), seed=1)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = build(NONE, config, OLD, 32).eval()
    with_block = build(parse_variants(["cbam(reduction=4)@block:2"])[0], config, OLD, 32).eval()
    assert torch.equal(plain(x), foveal.load(weights).eval()(x))
    torch.testing.assert_close(with_block(x), plain(x))


def test_files_of_blocks_without_the_weights_that_hold_them_are_refused():
    """Who wants to compare se may well write --blocks se."""
    with pytest.raises(FovealError, match=r"blocks are the Python files .* got se; .* named by --insert"):
        with_start(TrainConfig(blocks=["se"]))
    with pytest.raises(FovealError, match=r"blocks are the Python files .* got se"):
        plan_comparison(None, seeds=6, control=True, training={"blocks": ["se"]})
