"""The recordings kept for later questions stay within their bounds, and those asked of last stay longest."""

import pytest
import torch

from foveal.inference import Predictor
from foveal.look.page import cache
from foveal.look.page.refusals import HTTPError
from foveal.look.predict import predict_recorded


@pytest.fixture
def image(network: Predictor) -> cache.CachedImage:
    view = torch.zeros(3, 32, 32, dtype=torch.uint8)
    return cache.CachedImage("x", [view], [predict_recorded(network, view)])


def test_the_least_recently_used_go_when_the_bytes_are_too_many(
    image: cache.CachedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = cache.RecordingCache()
    monkeypatch.setattr(cache, "MAX_CACHED_BYTES", 3 * image.bytes)
    names = [kept.put(image) for _ in range(3)]
    assert kept.get(names[0]) is image
    names.append(kept.put(image))
    with pytest.raises(HTTPError, match="choose it again"):
        kept.get(names[1])
    for name in (names[0], *names[2:]):
        assert kept.get(name) is image
    assert len(set(names)) == 4


def test_so_many_images_are_kept_and_no_more(
    image: cache.CachedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = cache.RecordingCache()
    monkeypatch.setattr(cache, "MAX_CACHED_IMAGES", 1)
    first, second = kept.put(image), kept.put(image)
    with pytest.raises(HTTPError):
        kept.get(first)
    assert kept.get(second) is image
