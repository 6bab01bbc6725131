import pytest
import torch

from foveal.compare.plan import plan_comparison
from foveal.compare.variants import (
    NONE,
    awake_norms,
    build,
    control_of,
    parse_models,
    parse_variants,
    plain_convolution,
)
from foveal.errors import FovealError
from foveal.insertion import inserted
from foveal.measure import count_parameters
from foveal.nn import BLOCKS
from foveal.train.config import TrainConfig

CONFIG = TrainConfig(seed=3)
TEN, THREE = list("abcdefghij"), list("abc")


def test_all_variants_of_a_seed_start_as_the_same_function():
    attention = parse_variants(["se(reduction=4)@residual:3", "nonlocal@residual:3", "dual@stage:3"])
    control = control_of(attention, CONFIG, classes=TEN, image_size=16)
    x = torch.randn(2, 3, 16, 16)
    expected = build(NONE, CONFIG, TEN, 16).eval()(x)
    for variant in [control, *attention]:
        assert torch.equal(build(variant, CONFIG, TEN, 16).eval()(x), expected), variant.name


def test_another_seed_is_another_backbone():
    one, other = (build(NONE, TrainConfig(seed=seed), TEN, 16).get_parameter("fc.weight") for seed in (0, 1))
    assert not torch.equal(one, other)


def test_no_variant_has_more_parameters_than_the_control_and_it_sits_at_the_same_sites():
    attention = parse_variants(["se(reduction=4)@residual:2,3", "nonlocal@residual:2,3"])
    control = control_of(attention, CONFIG, classes=TEN, image_size=16)
    nets = {v.name: build(v, CONFIG, TEN, 16) for v in [*attention, control]}
    counts = {name: count_parameters(net) for name, net in nets.items()}
    assert max(counts, key=lambda name: counts[name]) == "control"
    assert counts["control"] < 1.02 * counts["nonlocal"]
    assert [one.site for one in inserted(nets["control"])] == [one.site for one in inserted(nets["nonlocal"])]


@pytest.mark.parametrize("like", ["se", "nonlocal", "dual"])
def test_the_plain_block_has_the_parameters_of_its_model_and_trains_from_the_first_step(like):
    block = plain_convolution(64, like=like)
    wanted = count_parameters(BLOCKS[like](64))
    assert wanted <= count_parameters(block) < wanted + 10 * 64 + 3
    x = torch.randn(2, 64, 6, 6)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.restore.weight.grad is not None
    assert block.restore.weight.grad.abs().sum() > 0


def test_names_are_short_where_they_can_be():
    assert [v.name for v in parse_variants(["se", "cbam@stage:3"])] == ["se", "cbam"]
    assert [v.name for v in parse_variants(["se@stage:2", "se@stage:3"])] == ["se@stage:2", "se@stage:3"]
    alike = [
        "cbam(reduction=4,arrangement=parallel)@residual:2-3",
        "cbam(reduction=4,kernel_size=3)@residual:2,3",
    ]
    assert [v.name for v in parse_variants(alike)] == ["cbam(arrangement=parallel)", "cbam(kernel_size=3)"]
    assert [v.name for v in parse_variants(["a.py:SE", "b.py:SE(r=2)@block:2"])] == [
        "a.py:SE@residual",
        "b.py:SE(r=2)@block:2",
    ]
    # the results of two variants with one name would be counted as one's
    assert [v.name for v in parse_variants(["a.py:none@stage:3", "a.py:control"])] == [
        "a.py:none",
        "a.py:control",
    ]


@pytest.mark.parametrize(
    ("insertions", "message"),
    [
        ([], "at least one block, got none"),
        (["se", "se"], "got 'se' twice"),
        (
            ["cbam", "se(bias=true,reduction=4)@block:2-3", "se(reduction=4, bias=True)@block:2,3"],
            "Tru.* twice",
        ),
    ],
)
def test_refuses_what_cannot_be_compared(insertions, message):
    with pytest.raises(ValueError, match=message):
        parse_variants(insertions)


def test_norms_before_a_block_start_at_one_in_every_variant_alike():
    """timm's ResNets start the last norm of a branch at zero, where a gate gets no gradient: all begin awake."""
    config = TrainConfig(model="resnet10t", seed=3)
    attention = parse_variants(["cbam@residual:4", "nonlocal@block:3"])
    norms = awake_norms(attention, config, classes=THREE, image_size=64)
    assert norms == ["layer4.0.bn2"]
    control = control_of(attention, config, classes=THREE, image_size=64)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    nets = {v.name: build(v, config, THREE, 64, norms).eval() for v in [NONE, control, *attention]}
    assert all(torch.equal(net(x), nets["none"](x)) for net in nets.values())
    assert not torch.equal(build(NONE, config, THREE, 64).eval()(x), nets["none"](x))
    [gate] = inserted(nets["cbam"])
    nets["cbam"].train()(x).square().sum().backward()
    assert sum(float(p.grad.abs().sum()) for p in gate.module.parameters() if p.grad is not None) > 0


def test_no_norm_is_touched_where_none_sleeps():
    assert awake_norms(parse_variants(["se(reduction=4)"]), CONFIG, classes=THREE, image_size=32) == []


def test_options_of_a_network_may_have_any_name():
    variants = parse_models(["a", "b(stages=3, strides=[4, 8])"])
    assert variants[1].model_options == {"stages": 3, "strides": [4, 8]}
    with pytest.raises(FovealError, match="must end with a bracket"):
        parse_models(["a", "b(stages=3"])


def test_networks_with_recipes_of_their_own_are_compared_each_by_its_own():
    plan = plan_comparison(
        None,
        models=["detr_test_resnet", "sparse_rcnn_test_resnet(width=32)"],
        seeds=1,
        control=False,
        training={"task": "detect", "data_options": {"length": 4}, "model_options": {"num_queries": 5}},
    )
    nets = [build(v, plan.job.config, plan.job.info.classes, plan.job.info.image_size) for v in plan.variants]
    assert [type(net).__name__ for net in nets] == ["DETR", "SparseRCNN"]
    assert [net.num_queries for net in nets] == [5, 5]
    assert (nets[0].queries, nets[1].init_proposal_features.weight.shape[1]) == ("selected", 32)
