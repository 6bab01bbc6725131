"""The page, served: images come in as bytes, attention goes out as JSON; nothing is written and no path is opened.

Each image gets an unguessable name under which its recording is kept in memory until newer ones need the room, so
that clients never see each other's. Networks run in worker threads, one image at a time, while the event loop keeps
answering; a client that sends slowly holds a connection and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from torch import Tensor

from foveal.errors import FovealError
from foveal.inference import Predictor
from foveal.look.generated import see_generated
from foveal.look.page import description
from foveal.look.page.cache import CachedImage, RecordingCache
from foveal.look.page.connections import HeaderTimeoutProtocol
from foveal.look.page.html import page, page_with
from foveal.look.page.payload import image_payload, png, row_payload
from foveal.look.page.refusals import HTTPError, check_origin, error_response, printable, whole_number
from foveal.look.page.uploads import Uploads, decode_clip, decode_upload
from foveal.look.predict import predict_recorded

Taken = Literal["images", "videos", "seeds"]
MAX_RECORDED_BYTES = 2**26
"""Bytes that the recording of one image by one network may take."""
ROWS_AT_ONCE = 4
SEEDS = 10**9
IMAGES_OF_SEED = 10
"""Of a generator: so many images of a seed are offered."""
CLOSE_SECONDS = 2
"""How long a server that ends waits for requests under way, such as an upload that never comes to its end."""


class PageServer:
    """Answers the page's questions.

    Args:
        networks: every image is shown to all of them.
        examples: images to begin with by name, uint8 (3, H, W); or clips, (3, t, H, W).
        allow_hosts: names besides ``localhost`` and IP addresses that a request may be addressed to. Others are
            refused, for a foreign page could point a name of its own at this machine.

    Raises:
        FovealError: some of the networks take something else than the others: images, clips, or a seed.
    """

    def __init__(
        self,
        networks: Sequence[Predictor],
        examples: Sequence[tuple[str, Tensor]],
        allow_hosts: tuple[str, ...],
    ) -> None:
        taken: list[Taken] = [_taken(network) for network in networks]
        if len(set(taken)) > 1:
            names = ", ".join(
                f"{network.name} ({what})" for network, what in zip(networks, taken, strict=True)
            )
            raise FovealError(
                f"weights served together must all take images, or videos, or seeds, got {names}"
            )
        self.networks, self.of = networks, taken[0]
        self.examples = examples
        self.allow_hosts = allow_hosts
        self.cache = RecordingCache()
        self.uploads = Uploads()
        # A network is watched by hooks, and a decoded image is large, so one at a time; waiting ones hold no thread.
        self.turn = asyncio.Semaphore(1)
        self.row_turn = asyncio.Semaphore(ROWS_AT_ONCE)
        self.content = page(self.of)
        self.policy = _content_policy(self.content)
        self.thumbnails = [{"name": name, "image": png(_thumbnail(image))} for name, image in examples]

    # ------------------------------------------------------------------------------------------------ every answer

    async def guard(self, request: Request, call_next: Callable[..., Any]) -> Response:
        """Refuse what other sites send; tell the browser to trust no other site."""
        try:
            check_origin(request, self.allow_hosts)
        except HTTPError as error:
            response: Response = error_response(error)
        else:
            response = await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Content-Security-Policy"] = self.policy
        response.headers["Cache-Control"] = "no-store"
        return response

    async def refuse(self, _request: Request, error: Any) -> Response:
        """Of an `HTTPError`."""
        return error_response(error)

    async def unknown(self, _request: Request, error: Any) -> Response:
        """Of another path or method."""
        return error_response(HTTPError(error.status_code, "there is nothing here; the page is at /"))

    async def fail(self, _request: Request, _error: Exception) -> Response:
        """Of a bug of ours; the terminal has the traceback."""
        return error_response(HTTPError(500, "the server failed at this; its terminal says why"))

    # --------------------------------------------------------------------------------------------------- questions

    async def index(self) -> HTMLResponse:
        """The page."""
        return HTMLResponse(self.content)

    async def list_examples(self) -> JSONResponse:
        """Names and thumbnails of the images to begin with."""
        return JSONResponse(self.thumbnails)

    async def take_example(self, number: str) -> JSONResponse:
        """Look at one of them."""
        name, image = self.examples[whole_number(number, "number", len(self.examples), status=404)]
        async with self.turn:
            return JSONResponse(await run_in_threadpool(self._look_at, name, image))

    async def list_seed(self, seed: str) -> JSONResponse:
        """Thumbnails of the images that the first network makes of a seed."""
        number = whole_number(seed, "seed", SEEDS, status=404)
        async with self.turn:
            return JSONResponse(await run_in_threadpool(self._made, number))

    async def take_seed(self, seed: str, number: str) -> JSONResponse:
        """Make one of them again, and look at that."""
        asked = whole_number(seed, "seed", SEEDS, status=404)
        which = whole_number(number, "number", IMAGES_OF_SEED, status=404)
        async with self.turn:
            return JSONResponse(await run_in_threadpool(self._look_at_made, asked, which))

    async def take_image(self, request: Request) -> JSONResponse:
        """Look at an image that the client sends."""
        name = printable(request.query_params.get("name", "")) or "image"
        async with self.uploads.received(request) as body, self.turn:
            image, note = await run_in_threadpool(self._decoded, body, name)
            return JSONResponse(await run_in_threadpool(self._look_at, name, image, note))

    async def row(self, request: Request, image: str) -> JSONResponse:
        """The attention row of one query."""
        cached, asked = self.cache.get(image), request.query_params
        number = whole_number(asked.get("network", "0"), "network", len(cached.answers))
        _, seen = cached.answers[number]
        site = asked.get("site", "")
        if site not in list(seen):
            raise HTTPError(404, f"there is no site {printable(site)[:80]!r}")
        recording = seen[site]
        if len(recording.spatial) not in (2, 3):
            raise HTTPError(400, f"site {site!r} has no rows over an image")
        axes = "tyx"[-len(recording.spatial) :]
        cell = tuple(
            whole_number(asked.get(axis, ""), axis, cells)
            for axis, cells in zip(axes, recording.spatial, strict=True)
        )
        try:
            async with self.row_turn:
                return JSONResponse(await run_in_threadpool(row_payload, recording, cell))
        except FovealError as error:
            raise HTTPError(400, str(error)) from error

    async def export(self, image: str) -> HTMLResponse:
        """The page as one file, with everything about an image inside."""
        cached = self.cache.get(image)
        async with self.turn:
            text = await run_in_threadpool(self._exported, cached)
        return HTMLResponse(text, headers={"Content-Disposition": 'attachment; filename="attention.html"'})

    # --------------------------------------------------------------------------------------------------- in threads

    def _decoded(self, body: bytes, name: str) -> tuple[Any, str]:
        if self.of == "videos":
            return decode_clip(body, name, self.networks[0].info.channels)
        return decode_upload(body, name, self.networks[0].info.grey_bits)

    def _look_at(self, name: str, image: Any, note: str = "") -> dict[str, Any]:
        try:
            views = [network.view({"image": image})["image"] for network in self.networks]
            answers = [
                predict_recorded(network, view, max_bytes=MAX_RECORDED_BYTES)
                for network, view in zip(self.networks, views, strict=True)
            ]
            return self._kept(CachedImage(name, views, answers), note)
        except FovealError as error:
            raise HTTPError(422, str(error)) from error

    def _look_at_made(self, seed: int, number: int) -> dict[str, Any]:
        try:
            seen = [
                see_generated(network, seed, number, max_bytes=MAX_RECORDED_BYTES)
                for network in self.networks
            ]
            answers = [(one.answer, one.recordings) for one in seen]
            name = f"seed {seed}, image {number}"
            return self._kept(CachedImage(name, [one.view for one in seen], answers), "")
        except FovealError as error:
            raise HTTPError(422, str(error)) from error

    def _made(self, seed: int) -> list[dict[str, str]]:
        task: Any = self.networks[0].task
        inference = task.InferenceOptions(count=IMAGES_OF_SEED, seed=seed)
        found = task.sample(self.networks[0].net, self.networks[0].info, inference)
        return [{"name": answer.file, "image": png(_thumbnail(image))} for answer, image in found]

    def _kept(self, cached: CachedImage, note: str) -> dict[str, Any]:
        payloads = self._payloads(cached, rows=False)
        return {"id": self.cache.put(cached), "name": cached.name, "note": note, "networks": payloads}

    def _payloads(self, cached: CachedImage, *, rows: bool) -> list[dict[str, Any]]:
        return [
            image_payload(network, cached.name, view, answer, seen.values(), rows=rows)
            for network, view, (answer, seen) in zip(self.networks, cached.views, cached.answers, strict=True)
        ]

    def _exported(self, cached: CachedImage) -> str:
        return page_with([{"name": cached.name, "networks": self._payloads(cached, rows=True)}])


def make_app(
    networks: Sequence[Predictor],
    examples: Sequence[tuple[str, Tensor]],
    *,
    allow_hosts: tuple[str, ...] = (),
) -> FastAPI:
    """The application behind the page; its ``openapi()`` describes it, which is for tests and not served.

    Args:
        networks, examples, allow_hosts: see `PageServer`.
    """
    app = FastAPI(
        title="foveal's page", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    server = PageServer(networks, examples, allow_hosts)
    app.middleware("http")(server.guard)
    app.exception_handler(HTTPError)(server.refuse)
    for status in (404, 405):
        app.exception_handler(status)(server.unknown)
    app.exception_handler(500)(server.fail)
    app.get("/", **description.PAGE)(server.index)
    if server.of == "seeds":
        app.get("/api/seeds/{seed}", **description.SEEDS)(server.list_seed)
        app.post("/api/seeds/{seed}/{number}", **description.SEED)(server.take_seed)
    else:
        app.get("/api/examples", **description.EXAMPLES)(server.list_examples)
        app.post("/api/examples/{number}", **description.EXAMPLE)(server.take_example)
        app.post("/api/images", **description.IMAGE)(server.take_image)
    app.get("/api/images/{image}/row", **description.ROW)(server.row)
    app.get("/api/images/{image}/export", **description.EXPORT)(server.export)
    return app


# ------------------------------------------------------------------------------------------------------- listening


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
        http=HeaderTimeoutProtocol,
        ws="none",
        # uvicorn warns of every malformed request, which a client could fill a terminal with
        log_level="error",
        server_header=False,
        timeout_graceful_shutdown=CLOSE_SECONDS,
    )
    return uvicorn.Server(config)


def _taken(network: Predictor) -> Taken:
    if hasattr(network.task, "sample"):
        return "seeds"
    return "videos" if hasattr(network.task, "example_size") else "images"


def _thumbnail(image: Any) -> Tensor:
    """Small enough for a button; of a clip the frame in its middle."""
    image = image if len(image.shape) == 3 else image[:, image.shape[1] // 2]
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
