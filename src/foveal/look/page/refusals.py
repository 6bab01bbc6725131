"""What the server does not answer, and the status and sentence it says instead."""

from __future__ import annotations

import ipaddress

from fastapi import Request
from fastapi.responses import JSONResponse


class HTTPError(Exception):
    """An answer that is not what was asked for: an HTTP status and a sentence for the person at the page."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
        self.message = message


def error_response(error: HTTPError) -> JSONResponse:
    """The error as the page reads it."""
    return JSONResponse({"error": error.message}, status_code=error.status)


def check_origin(request: Request, allow_hosts: tuple[str, ...]) -> None:
    """Refuse requests that another site's page makes a browser send, or that come under another name.

    Raises:
        HTTPError: with status 403.
    """
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if not (name in ("localhost", *allow_hosts) or _is_address(name.strip("[]"))):
        raise HTTPError(
            403, f"requests to the host {printable(name)!r} are not answered; use the address printed"
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise HTTPError(403, "requests from other sites are not answered")
    top_level = request.url.path == "/" and request.method in ("GET", "HEAD")
    if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not top_level:
        raise HTTPError(403, "requests from other sites are not answered")
    # A browser lets a foreign page send this header only after asking, and the answer would be no.
    if request.method not in ("GET", "HEAD") and "x-foveal" not in request.headers:
        raise HTTPError(403, "requests that do not come from the page are not answered (header X-Foveal)")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def whole_number(text: str, name: str, below: int, status: int = 400) -> int:
    """``text`` as a number from 0 to ``below - 1``, in plain digits.

    Raises:
        HTTPError: with this status.

    Example:
        >>> whole_number("3", "y", below=7)
        3
    """
    # int() of thousands of digits would raise an error of its own
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) >= below:
        raise HTTPError(
            status, f"{name} must be a whole number from 0 to {below - 1}, got {printable(text)[:20]!r}"
        )
    return int(text)


def printable(text: str) -> str:
    """A client's words, fit to be repeated: printable and short.

    Example:
        >>> printable("a\\0b" + "c" * 200)[:3], len(printable("c" * 200))
        ('a?b', 120)
    """
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
