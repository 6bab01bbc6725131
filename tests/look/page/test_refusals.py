"""A status and a sentence for everything that is not a question from the page."""

import httpx
import pytest

from .conftest import PAGE, png, refusal


@pytest.mark.parametrize(
    ("headers", "sentence"),
    [
        ({"Host": "evil.example"}, "host 'evil.example' are not answered"),
        ({"Host": "evil.example:8000"}, "host 'evil.example' are not answered"),
        ({"Origin": "http://evil.example"}, "from other sites"),
        ({"Origin": "null"}, "from other sites"),
        ({"Sec-Fetch-Site": "cross-site"}, "from other sites"),
        ({"Sec-Fetch-Site": "same-site"}, "from other sites"),
        ({"X-Foveal": None}, "header X-Foveal"),
    ],
)
def test_foreign_requests_are_refused(address: str, headers: dict[str, str | None], sentence: str) -> None:
    sent = {name: value for name, value in {**PAGE, **headers}.items() if value is not None}
    answer = httpx.post(f"{address}/api/images", headers=sent, content=png())
    assert refusal(answer)[0] == 403
    assert sentence in refusal(answer)[1]


def test_the_page_may_be_called_by_an_allowed_name(address: str) -> None:
    assert httpx.get(address, headers={"Host": "lab:1"}).status_code == 200
    assert httpx.get(address, headers={"Host": "localhost"}).status_code == 200
    assert httpx.get(address, headers={"Host": "[::1]:80"}).status_code == 200


@pytest.mark.parametrize(
    "number", ["1", "-1", "x", "1.5", "²", "٠", "０", "9" * 5000, "9" * 4301, "%00", "0x0", "1e0", "+0", " 0"]
)
def test_an_example_by_an_odd_number_is_refused(client: httpx.Client, number: str) -> None:
    """`int` of more than 4,300 digits is an error of Python's own, and digits of other scripts count as digits."""
    status, sentence = refusal(client.post(f"/api/examples/{number}"))
    assert status == 404
    assert sentence.startswith("number must be a whole number from 0 to 0, got ")
    assert len(sentence) < 100


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"y": "-1"}, 400),
        ({"y": "16"}, 400),
        ({"y": "1e3"}, 400),
        ({"x": "²"}, 400),
        ({"x": "٠"}, 400),
        ({"x": "9" * 5000}, 400),
        ({"network": "7"}, 400),
        ({"site": "../../../etc/passwd"}, 404),
        ({"site": ""}, 404),
    ],
)
def test_questions_outside_the_recording_are_refused(
    client: httpx.Client, change: dict[str, str], status: int
) -> None:
    seen = client.post("/api/images", content=png()).json()
    asked = {"network": "0", "site": seen["networks"][0]["sites"][1]["name"], "y": "0", "x": "0", **change}
    assert refusal(client.get(f"/api/images/{seen['id']}/row", params=asked))[0] == status


def test_a_site_without_rows_says_what_it_has(client: httpx.Client) -> None:
    seen = client.post("/api/images", content=png()).json()
    asked = {"network": 0, "site": seen["networks"][0]["sites"][0]["name"], "y": 0, "x": 0}
    status, sentence = refusal(client.get(f"/api/images/{seen['id']}/row", params=asked))
    assert status == 400
    assert "has no rows; it has gates, mask" in sentence


@pytest.mark.parametrize(
    "path",
    [
        "/api/images/unknown/row",
        "/api/images/unknown/export",
        "/docs",
        "/openapi.json",
        "/page.html",
        "/../x",
    ],
)
def test_there_is_nothing_else(client: httpx.Client, path: str) -> None:
    assert refusal(client.get(path))[0] == 404
