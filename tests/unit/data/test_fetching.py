"""Fetching over HTTP, from servers on loopback that misbehave in every way that servers do."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyscope.data import fetching
from manyscope.data.fetching import (
    BrokenConnectionError,
    FetchError,
    InterruptedTransferError,
    RefusedFileError,
    SilentHostError,
    Traffic,
    checksum_of,
    fetch,
)
from manyscope.errors import DataError, MissingDependencyError

BODY = np.random.default_rng(0).bytes(300_000)
CHECKSUM = f"xxh128:{xxhash.xxh128(BODY).hexdigest()}"
WRONG = bytes(300_000)

Answer = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives the answers of a list, one for each request, and behaves well after the last."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[Answer]]
    ranges: ClassVar[list[str | None]]

    def do_GET(self) -> None:
        self.ranges.append(self.headers["Range"])
        self.close_connection = True
        (self.answers.pop(0) if self.answers else serve())(self)

    def start(self) -> int:
        """The first byte that was asked for."""
        asked = self.headers["Range"]
        return int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]

    def log_message(self, *args: object) -> None:
        pass


def serve(body: bytes = BODY, cut: int | None = None, length: int | None = None, ranges: bool = True) -> Answer:
    """What is asked for of a body.

    Args:
        cut: so many bytes are sent, then the connection is closed.
        length: said to be the body's length.
        ranges: whether a part can be asked for.
    """

    def answer(handler: Handler) -> None:
        start = handler.start() if ranges else 0
        if start >= len(body) and start:
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.end_headers()
            return
        said = length or len(body)
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(said - start))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{said - 1}/{said}")
        handler.end_headers()
        handler.wfile.write(body[start:][:cut])

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()

    return answer


def reset(handler: Handler) -> None:
    """Half of what is asked for, then the connection breaks."""
    serve(cut=150_000)(handler)
    handler.wfile.flush()
    time.sleep(0.05)  # a reset overtakes what has not been read
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def chunked(cut: int | None = None) -> Answer:
    """A body without a length, in chunks; cut short after some bytes."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        body = BODY[:cut]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(body), body) + (b"" if cut else b"0\r\n\r\n"))

    return answer


def until_closed(cut: int | None = None) -> Answer:
    """A body that ends when the connection does."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY[:cut])

    return answer


class Server:
    def __init__(self, port: int, answers: list[Answer], ranges: list[str | None]) -> None:
        self.address, self.answers, self.ranges = f"http://127.0.0.1:{port}/file", answers, ranges


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    class Own(Handler):
        answers: ClassVar[list[Answer]] = []
        ranges: ClassVar[list[str | None]] = []

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Own) as server:
        server.handle_error = lambda *args: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(server.server_port, Own.answers, Own.ranges)
        server.shutdown()
        thread.join()


@pytest.fixture
def server(running: Server) -> Server:
    running.answers.clear()
    running.ranges.clear()
    return running


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; how long they would have."""
    waited: list[float] = []
    real = time.sleep
    monkeypatch.setattr(fetching.time, "sleep", lambda s: waited.append(s) if s >= 1 else real(s))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return waited


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "weights/net"


def arriving(target: Path) -> Path:
    return target.with_name(f".{target.name}.arriving")


def refused(server: Server, target: Path, checksum: str = CHECKSUM) -> str:
    with pytest.raises(DataError) as caught:
        fetch(server.address, target, checksum, "run it elsewhere")
    text = str(caught.value)
    final = "HTTP" in text.split(" tries, ")[0] or "twice" in text
    assert type(caught.value) is (RefusedFileError if final else FetchError)
    assert text.startswith(f"{target}: cannot be fetched from {server.address} (")
    assert text.endswith("); run it elsewhere")
    assert "\n" not in text
    return text


# -------------------------------------------------------------------------------------------- servers that mend
@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([], [None]),
        ([serve(cut=1000)], [None, "bytes=1000-"]),
        ([serve(cut=1000), serve(cut=70_000), serve(cut=1)], [None, "bytes=1000-", "bytes=71000-", "bytes=71001-"]),
        ([serve(cut=1000), serve(ranges=False)], [None, "bytes=1000-"]),
        ([serve(cut=1000), serve(ranges=False, cut=500)], [None, "bytes=1000-", "bytes=500-"]),
        ([hang_up, hang_up], [None, None, None]),
        ([chunked()], [None]),
        ([chunked(cut=65_536), chunked()], [None, "bytes=65536-"]),
        ([until_closed()], [None]),
        # Without a length only the checksum can say that it was cut short, and not where.
        ([until_closed(cut=1000)], [None, None]),
        # The file is whole when the server has nothing beyond it, whatever length was announced.
        ([serve(length=400_000)], [None, "bytes=300000-"]),
        ([serve(WRONG)], [None, None]),
        ([serve(WRONG, cut=1000)], [None, "bytes=1000-", None]),
        ([status(302, Location="/elsewhere")], [None, None]),
    ],
)  # fmt: skip
def test_arrives_whole(answers: list[Answer], ranges: list[str | None], server: Server, target: Path) -> None:
    server.answers[:] = answers
    fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert server.ranges == ranges
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_busy_server_is_asked_again(code: int, server: Server, target: Path, waits: list[float]) -> None:
    server.answers[:] = [status(code), status(code), status(code)]
    fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert waits == [1, 2, 4]


def test_server_says_how_long_to_wait(server: Server, target: Path, waits: list[float]) -> None:
    server.answers[:] = [status(429, Retry_After=text) for text in ("7", "99999", "0", "Fri, 31 Dec 1999 23:59:59 GMT")]
    fetch(server.address, target, CHECKSUM)
    assert waits == [7, 120, 4, 8]


def test_connection_that_is_reset(server: Server, target: Path) -> None:
    server.answers[:] = [reset]
    fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert len(server.ranges) == 2
    assert server.ranges[1] is not None  # it went on


def test_server_that_falls_silent(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.2)
    awake = threading.Event()

    def stall(handler: Handler) -> None:
        serve(cut=131_072)(handler)
        handler.wfile.flush()
        awake.wait(20)

    server.answers[:] = [stall]
    try:
        fetch(server.address, target, CHECKSUM)
    finally:
        awake.set()
    assert target.read_bytes() == BODY
    assert server.ranges == [None, "bytes=131072-"]


def test_server_that_sends_byte_by_byte(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is alive in name only is given up, and the next goes on."""
    monkeypatch.setattr(fetching, "_TIMEOUT_S", 0.2)

    def trickle(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        for byte in BODY[:60]:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)

    server.answers[:] = [trickle]
    fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert len(server.ranges) == 2
    assert 0 < int(str(server.ranges[1]).removeprefix("bytes=").removesuffix("-")) < 60


def test_traffic_is_counted(server: Server, target: Path, waits: list[float]) -> None:
    traffic = Traffic()
    server.answers[:] = [serve(cut=1000)]
    waited: list[float] = []
    traffic.sleep = waited.append  # type: ignore[method-assign]
    fetch(server.address, target, CHECKSUM, traffic=traffic)
    assert (traffic.requests, traffic.bytes_in, traffic.bytes_out) == (2, 300_000, 0)
    assert traffic.request_s > 0
    assert traffic.response_s > 0
    assert (waited, waits) == ([1], [])


def test_traffic_that_is_ended(server: Server, target: Path) -> None:
    """What has arrived is kept; nobody waits out a pause."""
    traffic = Traffic()

    def end(handler: Handler) -> None:
        traffic.end()
        status(503, Retry_After="100")(handler)

    server.answers[:] = [serve(cut=1000), end]
    traffic.count()
    Traffic.sleep(traffic, 0)
    with pytest.raises(InterruptedTransferError):
        fetch(server.address, target, CHECKSUM, traffic=traffic)
    assert arriving(target).read_bytes() == BODY[:1000]
    assert not target.exists()


def test_patience_lasts_while_bytes_arrive(server: Server, target: Path, waits: list[float]) -> None:
    server.answers[:] = [serve(cut=20_000) for _ in range(14)]
    fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert waits == [1] * 14


@given(cuts=st.lists(st.integers(0, 100_000), max_size=12), ranges=st.lists(st.booleans(), min_size=12, max_size=12))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_it_is_right_or_not_there(
    cuts: list[int], ranges: list[bool], server: Server, tmp_path: Path
) -> None:
    target = tmp_path / "net"
    target.unlink(missing_ok=True)
    server.answers[:] = [serve(cut=cut, ranges=each) for cut, each in zip(cuts, ranges, strict=False)]
    try:
        fetch(server.address, target, CHECKSUM)
    except DataError:
        assert not target.exists()
        server.answers.clear()
        fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert not arriving(target).exists()


# ------------------------------------------------------------------------------------- what an earlier call left
@pytest.mark.parametrize(
    ("left", "ranges"),
    [
        (BODY[:123_456], ["bytes=123456-"]),
        (BODY, ["bytes=300000-"]),
        (WRONG[:1000], ["bytes=1000-", None]),
        (WRONG, ["bytes=300000-", None]),
        (BODY + b"more", ["bytes=300004-", None]),
    ],
)
def test_goes_on(left: bytes, ranges: list[str | None], server: Server, target: Path) -> None:
    target.parent.mkdir()
    arriving(target).write_bytes(left)
    fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert server.ranges == ranges


def test_another_part_than_asked_for(server: Server, target: Path) -> None:
    target.parent.mkdir()
    arriving(target).write_bytes(BODY[:1000])

    def answer(handler: Handler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 5-299999/300000")
        handler.send_header("Content-Length", "299995")
        handler.end_headers()
        handler.wfile.write(BODY[5:])

    server.answers[:] = [answer]
    fetch(server.address, target, CHECKSUM)
    assert target.read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


def test_what_has_arrived_is_kept_for_the_next_call(server: Server, target: Path) -> None:
    server.answers[:] = [serve(cut=1000), *[hang_up] * 5]
    refused(server, target)
    assert arriving(target).read_bytes() == BODY[:1000]
    server.ranges.clear()
    fetch(server.address, target, CHECKSUM)
    assert server.ranges == ["bytes=1000-"]


# --------------------------------------------------------------------------------------- servers that do not mend
@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 501])
def test_refusal_is_final(code: int, server: Server, target: Path, waits: list[float]) -> None:
    server.answers[:] = [status(code)]
    assert f"(HTTP {code} " in refused(server, target)
    assert len(server.ranges) == 1
    assert not waits


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(503), "6 tries, the last: HTTP 503 Service Unavailable"),
        (hang_up, "6 tries, the last: Remote end closed connection without response"),
        # The first of them brings new bytes, the others only the same ones.
        (serve(cut=1000, ranges=False), "6 tries, the last: the connection ended after 1,000 of 300,000 bytes"),
        (serve(length=300_001, ranges=False), "6 tries, the last: the connection ended after 300,000 of 300,001 bytes"),
    ],
)
def test_gives_up(answer: Answer, why: str, server: Server, target: Path) -> None:
    server.answers[:] = [answer] * 20
    assert f"({why})" in refused(server, target)
    assert not target.exists()


@pytest.mark.parametrize("answer", [serve(WRONG), serve(length=200_000), until_closed(cut=1000)])
def test_wrong_bytes(answer: Answer, server: Server, target: Path) -> None:
    """What was in its place before stays there."""
    target.parent.mkdir()
    target.write_bytes(b"before")
    server.answers[:] = [answer] * 20
    text = refused(server, target)
    assert re.search(rf"\(twice [\d,]+ bytes arrived with xxh128:\w{{32}} instead of {CHECKSUM}\)", text)
    assert server.ranges == [None, None]
    assert target.read_bytes() == b"before"
    assert list(target.parent.iterdir()) == [target]


def test_nobody_is_there(target: Path) -> None:
    with socket.socket() as taken:  # bound, and deaf
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/net"
        with pytest.raises(DataError) as caught:
            fetch(address, target, CHECKSUM)
    assert str(caught.value).startswith(f"{target}: cannot be fetched from {address} (3 tries, the last: [Errno 111]")
    assert str(caught.value).endswith("); run the same command again")


def test_certificate_that_does_not_hold(target: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    import ssl
    import urllib.error

    def distrust(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed certificate"))

    monkeypatch.setattr(fetching.urllib.request, "urlopen", distrust)
    with pytest.raises(DataError, match="self-signed certificate"):
        fetch("https://127.0.0.1/net", target, CHECKSUM)
    assert not waits


# ----------------------------------------------------------------------------------------------- without a checksum
def elsewhere(handler: Handler) -> None:
    """A part that is not the one that was asked for."""
    handler.send_response(206)
    handler.send_header("Content-Range", "bytes 5-299999/300000")
    handler.send_header("Content-Length", "299995")
    handler.end_headers()
    handler.wfile.write(BODY[5:])


@pytest.mark.parametrize(
    ("answers", "ranges"),
    [
        ([], [None]),
        ([serve(cut=1000), serve(cut=70_000)], [None, "bytes=1000-", "bytes=71000-"]),
        ([chunked()], [None]),
        ([until_closed()], [None]),
        ([chunked(cut=65_536), chunked()], [None, "bytes=65536-"]),
        ([serve(cut=1000), elsewhere], [None, "bytes=1000-", None]),
        ([status(503)], [None, None]),
    ],
)
def test_length_decides(answers: list[Answer], ranges: list[str | None], server: Server, target: Path) -> None:
    """What an earlier call left may be of another file."""
    target.parent.mkdir()
    arriving(target).write_bytes(WRONG[:500])
    server.answers[:] = answers
    fetch(server.address, target, None)
    assert target.read_bytes() == BODY
    assert server.ranges == ranges
    assert list(target.parent.iterdir()) == [target]


def test_length_is_never_reached(server: Server, target: Path) -> None:
    server.answers[:] = [serve(length=400_000)] * 20
    with pytest.raises(
        DataError, match=r"tries, the last: the (server has nothing after|connection ended after) 300,000"
    ):
        fetch(server.address, target, None)
    assert not target.exists()


def test_silence_is_an_error_of_its_own(server: Server, target: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(SilentHostError):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/net", target, None)
    server.answers[:] = [hang_up] * 20
    with pytest.raises(DataError) as caught:
        fetch(server.address, target, None)
    assert not isinstance(caught.value, SilentHostError)


@pytest.mark.parametrize("waits_s", [(), (3,), (3, 5)])
def test_as_many_tries_as_waits_and_one(
    server: Server, target: Path, waits: list[float], waits_s: tuple[float, ...]
) -> None:
    """Whether or not there is anybody; and what is known of whoever there is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(SilentHostError, match=f"{len(waits_s) + 1} tries") as caught:
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/net", target, None, waits_s=waits_s)
    causes = [caught.value.__cause__]
    for answer in (status(503), hang_up, status(429)):
        server.answers[:] = [answer] * 20
        with pytest.raises(DataError, match=f"{len(waits_s) + 1} tries") as found:
            fetch(server.address, target, None, waits_s=waits_s)
        causes.append(found.value.__cause__)
    assert [cause.able for cause in causes if isinstance(cause, BrokenConnectionError)] == [False, False, False, True]
    assert waits == list(waits_s) * 4


# ------------------------------------------------------------------------------------------------------ checksums
@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_checksums(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert checksum_of(file, "sha256") == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert checksum_of(file, "xxh128") == f"xxh128:{xxhash.xxh128(content).hexdigest()}"


def test_checksum_that_nobody_can_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for algorithm in ("xxh7", "sha7"):
        with pytest.raises(MissingDependencyError, match=algorithm):
            checksum_of(tmp_path / "file", algorithm)
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(MissingDependencyError, match="install the package xxhash"):
        checksum_of(tmp_path / "file", "xxh128")
