import pytest
import torch
from torch import nn

import foveal
from foveal.tasks.classify.loss import classification_loss, mix_pairs


def test_mixup_is_the_equation_of_its_paper():
    torch.manual_seed(0)
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


def test_mixup_needs_a_generator():
    net = foveal.create_model("cifar_resnet8", num_classes=2)
    with pytest.raises(foveal.FovealError, match="mixup needs a generator"):
        classification_loss(net, torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.long), mixup=0.2)
