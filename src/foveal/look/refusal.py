"""What the server does not answer, and the status and sentence it says instead."""

import asyncio
import ipaddress

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

MAX_UPLOAD = 20 * 2**20
"""Bytes of one upload."""
UPLOAD_SECONDS = 20.0
"""Time for the whole of one upload."""


class Refusal(Exception):
    """An answer that is not an image: an HTTP status and a sentence for the person at the page."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


def refused(refusal: Refusal) -> JSONResponse:
    return JSONResponse({"error": refusal.message}, status_code=refusal.status)


def foreign(request: Request, allow_hosts: tuple[str, ...]) -> Refusal | None:
    """Requests that another site's page makes a browser send, or that come under a foreign name."""
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if not (name in ("localhost", *allow_hosts) or _is_address(name.strip("[]"))):
        return Refusal(
            403, f"requests to the host {printable(name)!r} are not answered; use the address printed"
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return Refusal(403, "requests from other sites are not answered")
    top_level = request.url.path == "/" and request.method in ("GET", "HEAD")
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not top_level:
        return Refusal(403, "requests from other sites are not answered")
    # A browser lets a foreign page send this header only after asking, and the answer would be no.
    if request.method not in ("GET", "HEAD") and "x-foveal" not in request.headers:
        return Refusal(403, "requests that do not come from the page are not answered (header X-Foveal)")
    return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def read_body(request: Request) -> bytes:
    """The whole body, within ``MAX_UPLOAD`` and ``UPLOAD_SECONDS``, whatever the client declares."""
    declared = request.headers.get("content-length", "0")
    limit = f"an image file may have at most {MAX_UPLOAD // 2**20} MB"
    if not declared.isdecimal() or int(declared) > MAX_UPLOAD:
        raise Refusal(413, f"{limit}, got {printable(declared)[:20]} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MAX_UPLOAD:
                    raise Refusal(413, f"{limit}, got more")
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, f"the upload took longer than {UPLOAD_SECONDS:g} seconds") from None
    except ClientDisconnect:
        raise Refusal(400, "the upload was broken off") from None
    if size == 0:
        raise Refusal(400, "the upload is empty")
    return b"".join(parts)


def whole_number(text: str, name: str, below: int) -> int:
    """``text`` as a number from 0 to ``below - 1``, in plain digits."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) >= below:
        raise Refusal(
            400, f"{name} must be a whole number from 0 to {below - 1}, got {printable(text)[:20]!r}"
        )
    return int(text)


def printable(text: str) -> str:
    """A client's words, fit to be repeated: printable and short."""
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
