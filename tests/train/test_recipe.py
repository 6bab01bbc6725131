import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import foveal
from foveal.train.recipe import (
    Average,
    EpochBatches,
    Freeze,
    classification_loss,
    first_non_finite,
    make_optimizer,
    mix_pairs,
    rate_factor,
    seed_for,
    set_rate,
)


def flat(batches):
    return [index for batch in batches for _, index in batch]


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own():
    batches = EpochBatches(12, 4, seed=3)
    first = flat(batches)
    batches.epoch = 1
    second = flat(batches)
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert flat(EpochBatches(12, 4, seed=3)) == first
    assert flat(EpochBatches(12, 4, seed=4)) != first


def test_batches_say_their_epoch():
    batches = EpochBatches(4, 2, seed=0)
    batches.epoch = 5
    assert {epoch for batch in batches for epoch, _ in batch} == {5}


def test_processes_share_the_images_without_overlap():
    parts = [flat(EpochBatches(13, 3, seed=0, rank=rank, world=2)) for rank in range(2)]
    assert len(parts[0]) == len(parts[1]) == 6
    assert not set(parts[0]) & set(parts[1])


def test_a_continued_epoch_gives_the_batches_that_were_left_and_the_next_one_all():
    whole = EpochBatches(12, 4, seed=0)
    whole.epoch = 2
    rest = EpochBatches(12, 4, seed=0)
    rest.continue_at(2, 1)
    assert list(rest) == list(whole)[1:]
    assert list(rest) == list(whole)[1:], "iterating twice must not lose the place"
    rest.epoch = 3
    assert len(list(rest)) == 3


def test_fewer_images_than_a_batch_are_one_batch():
    assert [len(batch) for batch in EpochBatches(3, 64, seed=0)] == [3]


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_rates_rise_to_the_highest_and_never_rise_again(schedule):
    factors = [rate_factor(step, steps=50, warmup_steps=5, schedule=schedule) for step in range(50)]
    assert factors[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert all(a >= b for a, b in pairwise(factors[4:]))
    assert (factors[-1] < 0.05) == (schedule != "constant")


@pytest.mark.parametrize(
    ("schedule", "share"),
    [("cosine", lambda t: (1 + math.cos(math.pi * t)) / 2), ("poly", lambda t: (1 - t) ** 0.9)],
)
def test_rates_are_those_of_the_schedule_s_equation(schedule, share):
    found = [rate_factor(step, steps=50, warmup_steps=5, schedule=schedule) for step in range(5, 50)]
    assert found == pytest.approx([share(step / 45) for step in range(45)])


def test_set_rate_scales_each_groups_own_rate_again_and_again():
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=2), "se", reduction=4)
    optimizer = make_optimizer(net, lr=0.1, inserted_lr=0.5)
    for factor in (0.5, 0.1):
        set_rate(optimizer, factor)
        assert {g["lr"] for g in optimizer.param_groups} == {0.1 * factor, 0.5 * factor}


def test_mixup_is_the_equation_of_its_paper():
    images, labels = torch.rand(6, 3, 4, 4), torch.arange(6) % 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    mixed, partner, share = mix_pairs(images, 0.4, torch.Generator().manual_seed(1))
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[partner])
    one_hot = nn.functional.one_hot(labels, 2).float()
    target = share * one_hot + (1 - share) * one_hot[partner]
    expected = -(target * net(mixed).log_softmax(1)).sum(1).mean()
    loss = classification_loss(net, images, labels, mixup=0.4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, expected)


def test_mixup_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    mix_pairs(torch.rand(2, 1, 2, 2, generator=torch.Generator()), 0.4, torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_average_follows_weights_and_batch_statistics():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = Average(net, decay=0.5)
    expected = {k: v.clone() for k, v in net.state_dict().items()}
    for t in range(12):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        net(torch.randn(8, 2))
        average.update(net)
        decay = min(0.5, (1 + t) / (10 + t))
        for k, v in net.state_dict().items():
            expected[k] = decay * expected[k] + (1 - decay) * v if v.is_floating_point() else v.clone()
    for k, v in average.net.state_dict().items():
        torch.testing.assert_close(v, expected[k])
    assert not average.train().net.training


def test_a_frozen_backbone_keeps_its_weights_while_blocks_and_classifier_learn():
    torch.manual_seed(0)
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=3), "se", reduction=4, stages=(2,))
    optimizer = make_optimizer(net, lr=0.1, weight_decay=0.1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    freeze = Freeze(net, epochs=1)

    def step():
        optimizer.zero_grad()
        classification_loss(net, torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        return {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}

    assert freeze.begin(0)
    changed = step()
    assert all(".se." in k or k.startswith("fc.") for k in changed)
    assert {"fc.weight", "fc.bias"} <= changed
    assert net.layer1[0].conv1.weight.grad is None
    assert freeze.begin(1)
    assert not freeze.begin(2)
    assert set(net.state_dict()) - step() <= {"layer2.0.bn2.se.fc1.weight", "layer2.0.bn2.se.fc1.bias"}


def test_a_frozen_backbones_backward_ends_at_the_first_block_and_computes_no_gradient_of_its_weights():
    net = foveal.insert(foveal.create_model("cifar_resnet8", num_classes=3), "se", reduction=4, stages=(3,))
    Freeze(net, epochs=1).begin(0)
    with FlopCounterMode(display=False) as frozen:
        net(torch.randn(2, 3, 16, 16)).sum().backward()
    assert "aten.convolution_backward" not in {str(op) for op in frozen.get_flop_counts()["Global"]}


def test_the_network_of_segmentation_keeps_its_head_in_training():
    net = foveal.create_model("fcn_resnet18", num_classes=3)
    Freeze(net, epochs=1).begin(0)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert all(p.requires_grad for name, p in net.named_parameters() if not name.startswith("backbone."))


def test_freezing_all_there_is_is_refused():
    with pytest.raises(ValueError, match="something must be left to train"):
        Freeze(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), epochs=1)


def test_the_first_module_that_breaks_is_named():
    class Logarithm(nn.Module):
        def forward(self, x):
            return x.log()

    net = nn.Sequential(nn.Identity(), Logarithm(), nn.Identity())
    assert first_non_finite(net, -torch.ones(1, 2)) == "module '1' (Logarithm)"
    assert "every module's output was finite" in first_non_finite(net, torch.ones(1, 2))
    assert "the images themselves" in first_non_finite(net, torch.full((1, 2), float("nan")))
    assert not net[1]._forward_hooks


def test_seeds_differ_by_every_part_of_the_position():
    seeds = {seed_for(a, word, b) for a in range(3) for word in ("order", "step") for b in range(3)}
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_wrong_names_are_refused_with_the_rule():
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    with pytest.raises(ValueError, match="optimizer must be sgd or adamw, got lion"):
        make_optimizer(net, optimizer="lion", lr=0.1)
    with pytest.raises(ValueError, match="schedule must be"):
        rate_factor(1, steps=2, schedule="step")
    with pytest.raises(ValueError, match="mixup needs a generator"):
        classification_loss(net, torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long), mixup=0.2)
