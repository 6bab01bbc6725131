"""Distances between sets of features, against other people's arithmetic and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.errors import FovealError
from foveal.tasks.generate.features import (
    feature_network,
    frechet_distance,
    kernel_distance,
    precision_recall,
    spread,
)


def two_sets(n=400, d=6):
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(n, d, generator=generator, dtype=torch.float64)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    other = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + 0.5
    return one, other


def test_the_frechet_distance_is_that_of_torch_fidelity_and_of_scipy():
    from scipy.linalg import sqrtm
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    one, other = two_sets()
    statistics = [{"mu": x.mean(0).numpy(), "sigma": np.cov(x.numpy(), rowvar=False)} for x in (one, other)]
    theirs = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert frechet_distance(one, other) == pytest.approx(float(theirs), rel=1e-6)
    root = sqrtm(statistics[0]["sigma"] @ statistics[1]["sigma"]).real
    by_hand = np.sum((statistics[0]["mu"] - statistics[1]["mu"]) ** 2) + np.trace(
        statistics[0]["sigma"] + statistics[1]["sigma"] - 2 * root
    )
    assert frechet_distance(one, other) == pytest.approx(float(by_hand), rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-8)


def test_the_frechet_distance_stands_features_that_are_always_zero():
    one, other = two_sets()
    one[:, 0] = other[:, 0] = 0
    assert np.isfinite(frechet_distance(one, other))


def test_the_kernel_distance_is_that_of_torch_fidelity_on_standardised_features():
    from torch_fidelity.metric_kid import kernel_poly, mmd2

    one, other = two_sets(n=150)
    mean, std = one.mean(0), one.std(0)
    x, y = ((features - mean).div(std).numpy() for features in (one, other))
    how = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}
    kxx, kyy, kxy = (kernel_poly(a, b, **how) for a, b in ((x, x), (y, y), (x, y)))
    assert kernel_distance(one, other) == pytest.approx(float(mmd2(kxx, kxy, kyy)), rel=1e-9)


def test_precision_and_recall_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    made = torch.tensor([[0.5], [1.5], [20.0], [21.0], [22.0]], dtype=torch.float64)
    # with k=1 each real point reaches 1 far: two of five made ones lie within
    # made points reach 1 far each: real 0, 1, 2 lie within 1 of 0.5 or 1.5
    assert precision_recall(real, made, k=1) == (0.4, 0.6)


def test_the_spread_is_the_root_of_the_total_variance():
    one, _ = two_sets()
    assert spread(one) == pytest.approx(float(one.var(0).sum().sqrt()))


def test_the_bundled_classifier_knows_its_digits(without_float64):
    from foveal.data.scenes import Digits

    data = Digits("test", length=300)
    network = feature_network(None, data)
    tensors = data.as_tensors()
    features, answers = network(tensors["image"].float() / 255)
    assert features.shape == (300, 64)
    right = sum(
        answer == str(label) for answer, label in zip(answers, tensors["label"].tolist(), strict=True)
    )
    assert right > 270
    there, _ = network(without_float64(tensors["image"][:2].float() / 255))
    assert torch.allclose(there, features[:2])


# -------------------------------------------------------------------------------------------------------------- FID


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file as torch-fidelity publishes it, with random weights."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        torch.manual_seed(0)
        net = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path="x")
    torch.save(net.state_dict(), path)
    return str(path)


def test_features_for_fid_are_those_of_torch_fidelity(inception):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = feature_network(inception, None)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found, answers = network(images.float() / 255)
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=inception).eval()
    with torch.no_grad():
        torch.testing.assert_close(found, theirs(images)[0].double())
    assert answers is None
    assert network.name == "pt_inception.pth (Inception: FID)"


@pytest.mark.parametrize("content", [b"", b"no weights", {"a": torch.zeros(2)}, {"a": Path("/")}], ids=str)
def test_another_file_is_no_inception_and_nothing_of_it_is_run(tmp_path, content):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(FovealError, match="must be torch-fidelity's Inception weights"):
        feature_network(str(path), None)
