"""A small network with one block of each kind, its scales away from zero, saved as training saves it."""

import base64
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from foveal.inference import Predictor, predictor
from foveal.look.page import server

if TYPE_CHECKING:
    from playwright import sync_api

PAGE = {"X-Foveal": "1"}


@pytest.fixture(scope="session")
def network(weights: Path) -> Predictor:
    return predictor(weights, "cpu")


@pytest.fixture(scope="session")
def networks(weights: Path, other_weights: Path) -> list[Predictor]:
    return [predictor(weights, "cpu"), predictor(other_weights, "cpu")]


@pytest.fixture(scope="session")
def address(networks: list[Predictor]) -> Iterator[str]:
    black = [("black", torch.zeros(3, 40, 40, dtype=torch.uint8))]
    with server.serving(server.make_app(networks, black, allow_hosts=("lab",))) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[httpx.Client]:
    # nothing is encrypted here: without the word, each client reads all certificates of this machine first
    with httpx.Client(base_url=address, headers=PAGE, timeout=60, verify=False) as opened:
        yield opened


def png(width: int = 40, height: int = 40, seed: int = 0) -> bytes:
    """A file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def connected(address: str) -> socket.socket:
    """A connection of one's own, to send what no client library would."""
    host, _, port = address.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=60)


def upload_header(address: str, length: int = 999, expect: bool = False) -> bytes:
    """The header of an upload whose body is left to the caller."""
    lines = [
        "POST /api/images HTTP/1.1",
        f"Host: {address.removeprefix('http://')}",
        "X-Foveal: 1",
        f"Content-Length: {length}",
        *(["Expect: 100-continue"] if expect else []),
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]


# ------------------------------------------------------------------------------------------------------ the browser


def pixels(page: "sync_api.Page", panel: int = 0) -> np.ndarray:
    """What the canvas of a panel shows, carried as PNG."""
    data = page.evaluate("n => document.querySelectorAll('canvas.map')[n].toDataURL('image/png')", panel)
    return np.array(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))))


def drawn(page: "sync_api.Page", panel: int = 0) -> str:
    return page.locator(".panel").nth(panel).get_attribute("data-drawn") or ""


def click(page: "sync_api.Page", y: float, x: float, cell: str, panel: int = 0) -> None:
    """Click on a place of a panel's picture, in shares of its sides, and wait for the row of that cell."""
    box = page.locator("canvas.map").nth(panel).bounding_box()
    page.locator("canvas.map").nth(panel).click(position={"x": x * box["width"], "y": y * box["height"]})
    page.wait_for_function(
        "([n, c]) => document.querySelectorAll('.panel')[n].dataset.drawn?.endsWith(c)",
        arg=[panel, f"|{cell}"],
    )
