import pytest
import torch
from torch import nn

import foveal
from foveal.errors import FovealError
from foveal.tasks.classify import Classify, ClassifyOptions
from foveal.tasks.classify.loss import balanced_weights, classification_loss, mix_pairs


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


def test_class_weights_are_the_weighted_mean_written_by_hand():
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(12, 3), torch.randint(0, 3, (12,)), [1.0, 0.0, 2.5]
    losses = [float(-logits[i].log_softmax(0)[labels[i]]) * weights[labels[i]] for i in range(12)]
    expected = sum(losses) / sum(weights[label] for label in labels)
    ours = classification_loss(nn.Identity(), logits, labels, class_weights=weights)
    assert float(ours) == pytest.approx(expected, rel=1e-5)
    assert float(classification_loss(nn.Identity(), logits, labels)) != pytest.approx(expected, rel=1e-3)


def test_balanced_weights_are_those_of_scikit_learn():
    import numpy as np
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    data = [{"label": int(label)} for label in labels]
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_weights(data) == pytest.approx(expected.tolist())


def test_balanced_weights_refuse_a_class_without_images():
    class Split(list):
        classes = ("cat", "dog")

    with pytest.raises(FovealError, match="got none of dog"):
        balanced_weights(Split([{"label": 0}]))


def test_wrong_class_weights_are_refused():
    with pytest.raises(
        FovealError, match=r"class_weights must be finite, at least 0 and not all 0, got \[0.0, 0.0\]"
    ):
        ClassifyOptions(class_weights=[0.0, 0.0])
    with pytest.raises(FovealError, match=r"class_weights must be one a class, 2 of them \(a, b\), got 3"):
        Classify().describe(
            {"train": type("Split", (), {"classes": ["a", "b"]})}, ClassifyOptions(class_weights=[1, 1, 1])
        )
