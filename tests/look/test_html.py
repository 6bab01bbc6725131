"""The file and the JSON in it: complete, exact to their stated rounding, and inert."""

import base64
import json
import re

import numpy as np
import pytest
import torch

from foveal.inference import Predictor
from foveal.look.html import page, page_with
from foveal.look.payload import image_payload, row_payload, rows_payload
from foveal.look.recorded import predict_recorded

VIEW = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def unpacked(packed: dict) -> np.ndarray:
    """As the page does it."""
    if "float32" in packed:
        return np.frombuffer(base64.b64decode(packed["float32"]), np.float32).reshape(packed["shape"])
    low, high = np.array(packed["low"]), np.array(packed["high"])
    steps = np.frombuffer(base64.b64decode(packed["uint8"]), np.uint8).reshape(len(low), -1)
    return (low[:, None] + steps / 255 * (high - low)[:, None]).reshape(packed["shape"])


def test_every_site_is_in_the_payload_with_what_it_shows(network: Predictor) -> None:
    payload = image_payload(network, "a.jpg", VIEW, *predict_recorded(network, VIEW), rows=True)
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
    monkeypatch.setattr("foveal.look.payload.LARGEST_ROWS", 256 * 30)
    _, seen = predict_recorded(network, VIEW)
    rows = rows_payload(seen["layer2"])
    assert rows["queries"] == [5, 5]
    assert rows["shape"] == [25, 16, 16]


def test_large_channel_matrices_say_that_they_are_averaged(
    network: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveal.look.payload.LARGEST_MATRIX", 32)
    prediction, seen = predict_recorded(network, VIEW)
    payload = image_payload(network, "a.jpg", VIEW, prediction, seen, rows=False)
    matrix = payload["sites"][2]["channels"]
    assert matrix["step"] == 2
    assert matrix["shape"] == [32, 32]


def test_the_file_refers_to_nothing_outside_it(network: Predictor) -> None:
    payload = image_payload(network, "a.jpg", VIEW, *predict_recorded(network, VIEW), rows=True)
    text = page_with([{"name": "a.jpg", "networks": [payload]}])
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "http" not in re.sub(r'"uint8": "[^"]*"', "", text)
    assert "@import" not in text


def test_names_cannot_end_the_script_element(network: Predictor) -> None:
    payload = image_payload(
        network, "</script><script>alert(1)", VIEW, *predict_recorded(network, VIEW), rows=False
    )
    text = page_with([{"name": "</script><script>alert(1)", "networks": [payload]}])
    assert text.count("</script>") == page().count("</script>")
    data = re.search(r'id="foveal-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["images"][0]["name"] == "</script><script>alert(1)"
