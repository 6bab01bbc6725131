"""The page, served: images come in as bytes, attention goes out as JSON; nothing is written and no path is opened.

Each image gets an unguessable name under which its recording is kept in memory until newer ones need the room, so
that clients never see each other's. Models run in worker threads, one image at a time, while the event loop keeps
answering; a client that sends slowly holds a connection and nothing else.
"""

import asyncio
import base64
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from torch import Tensor
from uvicorn.protocols.http.h11_impl import H11Protocol

from foveal.inference import Predictor
from foveal.look.html import page, page_with
from foveal.look.payload import image_payload, png, row_payload
from foveal.look.record import Seen
from foveal.look.recorded import predict_recorded
from foveal.look.refusal import Refusal, foreign, printable, read_body, refused, whole_number

MAX_PIXELS = 40_000_000
"""Pixels of one image, judged by its header before anything is decoded."""
MAX_ASPECT = 8
"""How many times as long as wide an image may be: its shorter side is brought to the network's size."""
MAX_KEPT_BYTES = 2**29
"""Bytes of all recordings kept for later questions; the oldest go first."""
MAX_KEPT_IMAGES = 64
MAX_UPLOADS = 32
"""Uploads under way at once; more are told to come back."""
HEADER_SECONDS = 10.0
"""Time until a connection has sent the header of its first request."""
CLOSE_SECONDS = 2
"""How long a server that ends waits for requests under way, such as an upload that never comes to its end."""

# What a file begins with, for the formats that are decoded at all.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\x00", b"MM\x00*")


@dataclass(frozen=True)
class Kept:
    """One image as every network saw it."""

    name: str
    views: list[Tensor]
    answers: list[tuple[Any, Seen]]

    @property
    def bytes(self) -> int:
        return sum(seen.recorded_bytes for _, seen in self.answers) + sum(view.numel() for view in self.views)


class Shelf:
    """The recordings of the last images, by name, within ``MAX_KEPT_BYTES`` and ``MAX_KEPT_IMAGES``."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, kept: Kept) -> str:
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = kept
            while len(self._kept) > 1 and (
                len(self._kept) > MAX_KEPT_IMAGES
                or sum(k.bytes for k in self._kept.values()) > MAX_KEPT_BYTES
            ):
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> Kept:
        with self._lock:
            if name not in self._kept:
                raise Refusal(404, "this image is not kept any more; choose it again")
            self._kept.move_to_end(name)
            return self._kept[name]


def make_app(
    networks: list[Predictor], examples: list[tuple[str, Tensor]], *, allow_hosts: tuple[str, ...] = ()
) -> FastAPI:
    """The application behind the page.

    Args:
        networks: every image is shown to all of them.
        examples: bundled images by name, uint8 (3, H, W).
        allow_hosts: names besides ``localhost`` and IP addresses that a request may be addressed to. Others are
            refused, for a foreign page could point a name of its own at this machine.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    shelf = Shelf()
    # A network is watched by hooks, so one image at a time; the semaphore keeps waiting ones off the threads.
    turn = asyncio.Semaphore(1)
    uploads = 0
    content = page()
    policy = _content_policy(content)
    thumbnails = [{"name": name, "image": png(_thumbnail(image))} for name, image in examples]

    def look_at(name: str, image: Tensor) -> dict[str, Any]:
        views = [network.view({"image": image})["image"] for network in networks]
        answers = [
            predict_recorded(network, view, max_bytes=2**26)
            for network, view in zip(networks, views, strict=True)
        ]
        kept = Kept(name, views, answers)
        return {"id": shelf.put(kept), "name": name, "networks": _payloads(networks, kept, rows=False)}

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[..., Any]) -> Response:
        refusal = foreign(request, allow_hosts)
        response: Response = refused(refusal) if refusal else await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Content-Security-Policy"] = policy
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(Refusal)
    async def refuse(_request: Request, refusal: Refusal) -> Response:
        return refused(refusal)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def unknown(_request: Request, error: Any) -> Response:
        return refused(Refusal(error.status_code, "there is nothing here; the page is at /"))

    @app.exception_handler(500)
    async def fail(_request: Request, _error: Exception) -> Response:
        return refused(Refusal(500, "the server failed at this; its terminal says why"))

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(content)

    @app.get("/api/examples")
    async def list_examples() -> JSONResponse:
        return JSONResponse(thumbnails)

    @app.post("/api/examples/{number}")
    async def take_example(number: str) -> JSONResponse:
        if not number.isdecimal() or int(number) >= len(examples):
            raise Refusal(404, f"there are {len(examples)} bundled images, got number {number[:20]}")
        async with turn:
            return JSONResponse(await run_in_threadpool(look_at, *examples[int(number)]))

    @app.post("/api/images")
    async def take_image(request: Request) -> JSONResponse:
        nonlocal uploads
        if uploads >= MAX_UPLOADS:
            raise Refusal(503, f"{uploads} uploads are under way; try again in a moment")
        uploads += 1
        try:
            body = await read_body(request)
        finally:
            uploads -= 1
        name = printable(request.query_params.get("name", "")) or "image"
        async with turn:  # decoded images are large: only one waits for the networks
            image = await run_in_threadpool(_decode, body, name)
            return JSONResponse(await run_in_threadpool(look_at, name, image))

    @app.get("/api/images/{image}/row")
    async def row(request: Request, image: str) -> JSONResponse:
        kept, asked = shelf.get(image), request.query_params
        number = whole_number(asked.get("network", "0"), "network", len(kept.answers))
        _, seen = kept.answers[number]
        site = asked.get("site", "")
        if site not in list(seen):
            raise Refusal(404, f"there is no site {site[:80]!r}")
        record = seen[site]
        if len(record.spatial) != 2:
            raise Refusal(400, f"site {site!r} has no rows over an image")
        height, width = record.spatial
        cell = whole_number(asked.get("y", ""), "y", height), whole_number(asked.get("x", ""), "x", width)
        try:
            return JSONResponse(await run_in_threadpool(row_payload, record, cell))
        except ValueError as error:
            raise Refusal(400, str(error)) from error

    @app.get("/api/images/{image}/export")
    async def export(image: str) -> HTMLResponse:
        kept = shelf.get(image)
        payloads = await run_in_threadpool(_payloads, networks, kept, rows=True)
        text = await run_in_threadpool(page_with, [{"name": kept.name, "networks": payloads}])
        return HTMLResponse(text, headers={"Content-Disposition": 'attachment; filename="attention.html"'})

    return app


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which sends at once and drops connections that never finish their first header."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection.family in (socket.AF_INET, socket.AF_INET6):
            # Otherwise the body of an answer waits 40 ms for the client to acknowledge its header.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop.call_later(HEADER_SECONDS, self._drop_if_silent)

    def _drop_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def run_server(app: FastAPI, listener: socket.socket) -> None:
    """Serve on a listening socket until interrupted."""
    _server(app).run(sockets=[listener])


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve in a thread while this lasts, on a free port that only this machine reaches; gives the address.

    Example:
        >>> from urllib.request import urlopen
        >>> from foveal.inference import open_bundled
        >>> with serving(make_app([open_bundled()], examples=[])) as address:
        ...     urlopen(address).status
        200
    """
    server, listener = _server(app), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def _server(app: FastAPI) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return uvicorn.Server(config)


def _decode(body: bytes, name: str) -> Tensor:
    from foveal.data import decode_image

    if not body.startswith(SIGNATURES) and not (body[:4] == b"RIFF" and body[8:12] == b"WEBP"):
        raise Refusal(415, f"{name} is no JPEG, PNG, WebP, GIF, BMP or TIFF image by its content")
    try:
        image = decode_image(body, name=name, max_pixels=MAX_PIXELS)
    except ValueError as error:
        raise Refusal(413 if "pixels" in str(error) else 422, str(error)) from error
    height, width = image.shape[1:]
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise Refusal(
            422, f"an image may be {MAX_ASPECT} times as long as wide, got {name} of {height}x{width}"
        )
    return image


# ------------------------------------------------------------------------------------------------------- answers


def _payloads(networks: list[Predictor], kept: Kept, *, rows: bool) -> list[dict[str, Any]]:
    build = partial(image_payload, rows=rows)
    return [
        build(network, kept.name, view, *answer)
        for network, view, answer in zip(networks, kept.views, kept.answers, strict=True)
    ]


def _thumbnail(image: Tensor) -> Tensor:
    step = max(1, min(image.shape[1:]) // 64)
    return image[:, ::step, ::step]


def _content_policy(content: str) -> str:
    """Only the page's own script may run, by its hash, and only this server may be asked."""
    script = content.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
