"""A plan's figures are those of the insertion it foretells."""

import dataclasses

import pytest
import timm
import torch

import foveal
from foveal.measure import count_macs, count_parameters
from foveal.nn import BLOCKS

OPTIONS = {"se": {"reduction": 4}, "cbam": {"reduction": 4}}


@pytest.mark.parametrize("at", ["residual", "stage"])
@pytest.mark.parametrize("name", BLOCKS)
def test_totals_are_what_insertion_then_adds(name, at):
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    x = torch.randn(1, 3, 32, 32)
    own = count_parameters(net), count_macs(net, x)
    plan = foveal.plan(net, name, at=at, **OPTIONS.get(name, {}))
    assert (plan.network_parameters, plan.network_macs) == own
    assert foveal.inserted(net) == []
    foveal.insert(net, name, at=at, **OPTIONS.get(name, {}))
    assert [row.name for row in plan.rows] == [one.site for one in foveal.inserted(net)]
    assert plan.parameters == count_parameters(net) - own[0] > 0
    assert plan.macs == count_macs(net, x) - own[1] > 0


@pytest.mark.parametrize(
    ("name", "options", "products"),
    [  # (d + e) of the two products over n x m pairs, or what takes their place
        ("nonlocal", {"inner": 4}, lambda n: n * n * 8),
        ("nonlocal", {"inner": 4, "pairwise": "concatenation"}, lambda n: 2 * n * 4),
        ("selfattention", {"key_width": 2}, lambda n: n * n * 18),
        ("selfattention", {"key_width": 2, "similarity": "perceptron"}, lambda n: n * n * 18),
        ("position", {"key_width": 2}, lambda n: n * n * 18),
        ("channel", {}, lambda n: n * 16 * 16 * 2),
    ],
)
def test_products_between_positions_are_counted_however_they_are_computed(name, options, products):
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    (row,) = foveal.plan(net, name, stages=(1,), **options).rows
    assert row.shape == (16, 32, 32)
    width = 16 * 32 * 32
    # the projections and scales come on top: a handful of products of the map with narrow matrices
    assert products(32 * 32) <= row.macs <= products(32 * 32) + 4 * 16 * width


@pytest.mark.parametrize("name", ["se", "cbam", "dual"])
def test_activation_bytes_are_what_a_real_forward_keeps(name):
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    plan = foveal.plan(net, name, stages=(1,), **OPTIONS.get(name, {}))
    foveal.insert(net, name, stages=(1,), **OPTIONS.get(name, {}))
    (one,) = foveal.inserted(net)
    x = torch.randn(2, *plan.rows[0].shape).requires_grad_()
    own = {p.data_ptr() for p in one.module.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = one.module.train()(x)
    assert y.shape == x.shape
    assert plan.activation_bytes == sum(t.untyped_storage().nbytes() for t in kept.values()) // 2
    assert plan.activation_bytes >= x[0].numel() * 4


def test_figures_are_for_one_image_whatever_the_example():
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    one = foveal.plan(net, "cbam", reduction=4, example=torch.zeros(1, 3, 32, 32))
    five = foveal.plan(net, "cbam", reduction=4, example=torch.zeros(5, 3, 32, 32))
    assert one == five


def test_planning_changes_nothing():
    net = timm.create_model("regnetx_002", num_classes=4).train()
    state = {key: value.clone() for key, value in net.state_dict().items()}
    random_state = torch.get_rng_state()
    foveal.plan(net, "se", reduction=4, example=torch.zeros(1, 3, 64, 64))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_the_table_has_a_row_a_site_and_the_total():
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    plan = foveal.plan(net, "se", reduction=4)
    lines = str(plan).splitlines()
    assert lines[0] == "se in CifarResNet at residual: 3 sites, for one image"
    assert lines[3].split()[:5] == ["layer1.0.bn2", "1", "16", "x", "32"]
    total = next(line for line in lines if line.startswith("total"))
    assert f"{sum(row.parameters for row in plan.rows):,}" in total
    assert len({len(line) for line in lines if line.startswith("-")}) == 1
    assert max(map(len, lines)) <= 100


def test_a_notebook_shows_the_table_and_the_bars():
    plan = foveal.plan(foveal.create_model("cifar_resnet8", num_classes=10), "se", stages=(3,), reduction=4)
    assert repr(plan).startswith("<Plan se in CifarResNet at residual: 1 site, 2,128 parameters, ")
    page = plan._repr_html_()
    assert page.count("<tr>") == 1 + len(plan.rows) + 3
    assert "<td>layer3.0.bn2</td>" in page
    hostile = dataclasses.replace(plan, network="<script>alert(1)</script>")
    assert "<script>" not in hostile._repr_html_()
    figure = plan.plot()
    assert [bar.get_width() for bar in figure.axes[0].patches] == [row.parameters for row in plan.rows]


def test_mistakes_are_those_of_insert():
    net = foveal.create_model("cifar_resnet8", num_classes=10)
    with pytest.raises(ValueError, match=r"^block must be one of"):
        foveal.plan(net, "sse")
    with pytest.raises(ValueError, match=r"^se of 16 channels: "):
        foveal.plan(net, "se", reduction=1000)
