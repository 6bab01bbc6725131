"""Connections: answers leave at once, and clients that neither send nor read are let go, whichever request it is."""

import asyncio
import socket
import threading

import httpx
import pytest

from foveal.inference import Predictor
from foveal.look.page import connections, server

from .conftest import connected

GET = b"GET /api/examples HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /api/images HTTP/1.1\r\nHost: localhost\r\nX-Foveal: 1\r\n"


def answer_of(connection: socket.socket) -> bytes:
    """One whole answer with its body."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += connection.recv(65536)
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    assert len(body) == length
    return head


def test_a_connection_that_never_finishes_its_header_is_dropped(
    address: str, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connected(address) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert client.get("/").status_code == 200
        assert silent.recv(100) == b""


@pytest.mark.parametrize("answered", [1, 3])
def test_one_that_stops_in_a_later_header_is_dropped_too(
    address: str, monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connected(address) as silent:
        for _ in range(answered):
            silent.sendall(GET)
            assert b" 200 " in answer_of(silent)
        silent.sendall(b"GET / HT")
        assert silent.recv(100) == b""


def test_one_that_announces_a_body_and_never_sends_it_is_dropped(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connected(address) as silent:
        silent.sendall(b"GET /api/examples HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        assert b" 200 " in answer_of(silent)
        assert silent.recv(100) == b""


def test_one_that_asks_and_does_not_read_is_cut_off(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers would stay in memory for as long as it likes."""
    cut: list[bool] = []
    real = connections.HeaderTimeoutProtocol.connection_lost

    def noted(self: connections.HeaderTimeoutProtocol, error: Exception | None) -> None:
        cut.append(self.transport.get_write_buffer_size() == 0)
        real(self, error)

    monkeypatch.setattr(connections.HeaderTimeoutProtocol, "connection_lost", noted)
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    with connected(address) as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        pages = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 400
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # while we still send
            greedy.sendall(pages * 1000)
    assert cut == [True]


def test_many_requests_sent_in_one_go_are_all_answered(address: str) -> None:
    with connected(address) as eager:
        eager.sendall(GET * 50)
        got = b""
        while got.count(b"HTTP/1.1 200") < 50:
            part = eager.recv(65536)
            assert part, f"closed after {got.count(b'HTTP/1.1 200')} answers"
            got += part


def test_an_answer_that_takes_long_is_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is for headers: a network may compute for longer."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.05)
    real = server.predict_recorded

    def slow(*args: object, **options: object) -> object:
        found = real(*args, **options)  # type: ignore[arg-type]
        for _ in range(8):
            waiting.wait(0.05)
        return found

    waiting = threading.Event()
    monkeypatch.setattr(server, "predict_recorded", slow)
    answer = httpx.post(f"{address}/api/examples/0", headers={"X-Foveal": "1"}, timeout=60)
    assert answer.status_code == 200


def test_every_answer_starts_the_clock_anew(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a client that has just been answered could be dropped as if it had been silent."""
    started = []
    real = connections.HeaderTimeoutProtocol._wait
    monkeypatch.setattr(
        connections.HeaderTimeoutProtocol, "_wait", lambda self: (started.append(self), real(self))[1]
    )
    with connected(address) as one:
        for answers in range(1, 4):
            one.sendall(GET)
            answer_of(one)
            # once for the connection, and once for each answer but perhaps the one just read
            assert len(started) >= answers


ODD = {
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 50,
    "http-0.9": b"GET /\r\n\r\n",
    "huge-header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10**6 + b"\r\n\r\n",
    "two-hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "two-lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "unknown-encoding": POST + b"Transfer-Encoding: x\r\n\r\n",
    "upgrade": b"GET / HTTP/1.1\r\nHost: evil\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}


def test_what_is_no_request_is_refused_and_says_nothing_in_the_terminal(
    network: Predictor, capfd: pytest.CaptureFixture[str]
) -> None:
    """A line for each would let anybody fill the terminal."""
    with server.serving(server.make_app([network], [])) as address:
        for kind, sent in ODD.items():
            with connected(address) as odd:
                try:
                    odd.sendall(sent)
                    got = odd.recv(4096)
                except ConnectionError:
                    got = b""
            assert got == b"" or got.split(b" ")[1][:1] in (b"4", b"5"), kind
            assert httpx.get(address).status_code == 200
    assert capfd.readouterr().err == ""


def test_an_answer_is_sent_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the body waits 40 ms for the acknowledgement of the header, longer than a row takes."""
    no_delay = []
    real = connections.HeaderTimeoutProtocol.connection_made

    def noted(self: connections.HeaderTimeoutProtocol, transport: asyncio.Transport) -> None:
        real(self, transport)
        accepted = transport.get_extra_info("socket")
        no_delay.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(connections.HeaderTimeoutProtocol, "connection_made", noted)
    assert httpx.get(address).status_code == 200
    assert no_delay == [1]
