"""The JSON that the page draws: complete, and exact to its stated rounding."""

import base64

import numpy as np
import pytest
import torch

from foveal.inference import Predictor
from foveal.look.page.payload import image_payload, row_payload, rows_payload
from foveal.look.predict import predict_recorded

VIEW = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def payload_of(network: Predictor, name: str, rows: bool) -> dict:
    prediction, seen = predict_recorded(network, VIEW)
    return image_payload(network, name, VIEW, prediction, seen.values(), rows=rows)


def unpacked(packed: dict) -> np.ndarray:
    """As the page does it."""
    if "float32" in packed:
        return np.frombuffer(base64.b64decode(packed["float32"]), np.float32).reshape(packed["shape"])
    low, high = np.array(packed["low"]), np.array(packed["high"])
    steps = np.frombuffer(base64.b64decode(packed["uint8"]), np.uint8).reshape(len(low), -1)
    return (low[:, None] + steps / 255 * (high - low)[:, None]).reshape(packed["shape"])


def test_every_site_is_in_the_payload_with_what_it_shows(network: Predictor) -> None:
    payload = payload_of(network, "a.jpg", rows=True)
    kinds = [{"gates", "mask", "channels", "rows"} & set(site) for site in payload["sites"]]
    assert kinds == [{"gates", "mask"}, {"rows"}, {"rows", "channels"}]
    assert payload["weights"] == "one.safetensors"
    assert len(payload["prediction"]) == 5
    assert all(site["contribution"] > 0 for site in payload["sites"])


def test_a_row_is_exact_and_rows_of_a_file_are_exact_to_their_rounding(network: Predictor) -> None:
    _, seen = predict_recorded(network, VIEW)
    record = seen["layer2"]
    exact = record.rows((3, 5))[0, 0].numpy() * 256
    np.testing.assert_allclose(unpacked(row_payload(record, (3, 5))), exact, rtol=1e-6)
    rows = rows_payload(record)
    assert rows["queries"] == [16, 16]
    carried = unpacked(rows)[3 * 16 + 5]
    assert np.abs(carried - exact).max() <= (exact.max() - exact.min()) / 255 / 2 + 1e-5


def test_large_maps_get_fewer_queries_and_never_coarser_rows(
    network: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.look.page.payload.LARGEST_ROWS", 256 * 30)
    _, seen = predict_recorded(network, VIEW)
    rows = rows_payload(seen["layer2"])
    assert rows["queries"] == [5, 5]
    assert rows["shape"] == [25, 16, 16]


def test_large_channel_matrices_say_that_they_are_averaged(
    network: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.look.page.payload.LARGEST_MATRIX", 32)
    payload = payload_of(network, "a.jpg", rows=False)
    matrix = payload["sites"][2]["channels"]
    assert matrix["step"] == 2
    assert matrix["shape"] == [32, 32]
