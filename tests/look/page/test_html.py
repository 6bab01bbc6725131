"""The file: it asks nothing of the network, and no name in it can become code."""

import json
import re

from foveal.inference import Predictor
from foveal.look.page.html import page, page_with

from .test_payload import payload_of


def test_the_file_refers_to_nothing_outside_it(network: Predictor) -> None:
    payload = payload_of(network, "a.jpg", rows=True)
    text = page_with([{"name": "a.jpg", "networks": [payload]}])
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "http" not in re.sub(r'"uint8": "[^"]*"', "", text)
    assert "@import" not in text


def test_names_cannot_end_the_script_element(network: Predictor) -> None:
    payload = payload_of(network, "</script><script>alert(1)", rows=False)
    text = page_with([{"name": "</script><script>alert(1)", "networks": [payload]}])
    assert text.count("</script>") == page().count("</script>")
    data = re.search(r'id="foveal-data">(.*?)</script>', text, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["images"][0]["name"] == "</script><script>alert(1)"
