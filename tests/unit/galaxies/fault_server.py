"""A server on loopback that answers as file servers and the HSC cutout service do, and misbehaves on request."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import re
import socket
import struct
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import numpy as np
from astropy.io import fits

USERNAME, PASSWORD = "observer", "s3cret:of the sky"
PIXEL_DEG = 0.168 / 3600

Fault = Callable[["Handler", Callable[[], None]], None]
"""Called in the place of an answer, with what would give the right one."""


def cutout(fields: dict[str, str], size_px: int = 24) -> bytes:
    """The cutout of a rectangle: its image in extension 1, different for each rectangle, with its place on the sky."""
    identity = tuple(fields[key] for key in ("ra", "dec", "filter", "rerun", "sw", "sh"))
    return _cutout(float(fields["ra"]), float(fields["dec"]), identity, size_px)


@cache
def _cutout(ra: float, dec: float, identity: tuple[str, ...], size_px: int) -> bytes:
    rng = np.random.default_rng(int(hashlib.sha256(repr(identity).encode()).hexdigest()[:12], 16))
    image = fits.ImageHDU(rng.standard_normal((size_px, size_px)).astype(np.float32))
    image.header.update(
        CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=ra, CRVAL2=dec,
        CRPIX1=size_px / 2, CRPIX2=size_px / 2, CDELT1=-PIXEL_DEG, CDELT2=PIXEL_DEG,
    )  # fmt: skip
    image.add_checksum(when="at the service")
    file = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(file)
    return file.getvalue()


def member_name(line: int, fields: dict[str, str]) -> str:
    kind = {"coadd": "cutout", "coadd/bg": "coadd+bg"}[fields["type"]]
    tract = "9999" if fields["tract"] == "any" else fields["tract"]
    return f"arch-210101-123456/{line}-{kind}-{fields['filter']}-{tract}-{fields['rerun']}.fits"


def tar_of(members: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        folder = tarfile.TarInfo("arch-210101-123456")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@dataclass
class Log:
    """What the server has seen.

    Attributes:
        files: path -> how often its whole body was sent.
        rectangles: tract, ra and filter of what was asked for, in the order in which it came.
        lines: the same, as it was written.
        most: connections at the same time.
    """

    files: Counter[str] = field(default_factory=Counter)
    rectangles: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    now: int = 0
    most: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_GET(self) -> None:
        self._answer(self.serve_file)

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(self.serve_tar)

    def _answer(self, right: Callable[[], None]) -> None:
        log = self.server.log
        self.close_connection = True
        with self.lock:
            log.now += 1
            log.most = max(log.most, log.now)
            log.ranges.append(self.headers["Range"])
            log.authorizations.append(self.headers["Authorization"])
            fault = self.server.faults.pop(0) if self.server.faults else None
        try:
            if self.server.pause_s:
                time.sleep(self.server.pause_s)
            fault(self, right) if fault else right()
        finally:
            with self.lock:
                log.now -= 1

    # ------------------------------------------------------------------------------------------------ right answers
    def serve_file(self, body: bytes | None = None, ranges: bool = True) -> None:
        whole = self.server.files.get(self.path)
        if whole is None:
            self.status(404)
            return
        body = whole if body is None else body
        asked = self.headers["Range"] if ranges else None
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(body[start:])
        with self.lock:
            self.server.log.files[self.path] += 1

    def asked(self) -> list[dict[str, str]]:
        """The rectangles of the list, checked as the service would."""
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1]  # type: ignore[index]
        part = re.fullmatch(
            rb"--" + boundary.encode() + rb"\r\nContent-Disposition: form-data; name=\"list\"; filename=\"[^\"]+\"\r\n"
            rb"\r\n(.*)\r\n--" + boundary.encode() + rb"--\r\n",
            self.body,
            re.DOTALL,
        )
        assert part is not None, self.body
        first, *lines = part[1].decode().split("\n")
        assert first.startswith("#? ")
        names = first.removeprefix("#? ").split()
        rows = []
        for line in lines:
            row = dict(zip(names, line.split(), strict=True))
            for name in ("ra", "dec", "sw", "sh"):
                assert row[name].endswith("deg"), row
                row[name] = row[name].removesuffix("deg")
            rows.append(row)
        return rows

    def members(self) -> list[tuple[str, bytes]]:
        return [(member_name(line, row), cutout(row)) for line, row in enumerate(self.asked(), start=2)]

    def serve_tar(self, change: Callable[[list[tuple[str, bytes]]], Any] | None = None) -> None:
        if not self.let_in():
            return
        rows = self.asked()
        with self.lock:
            self.server.log.rectangles += [f"{row['tract']} {row['ra']} {row['filter']}" for row in rows]
            self.server.log.batches.append(len(rows))
            self.server.log.lines += self.body.decode().split("\r\n\r\n")[1].split("\r\n")[0].split("\n")[1:]
        members = self.members()
        if change:
            members = change(members)
        self.send_tar(tar_of(members))

    def let_in(self) -> bool:
        secret = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
        if self.headers["Authorization"] == f"Basic {secret}":
            return True
        self.status(401)
        return False

    def send_tar(self, body: bytes, said: int | None = None, kind: str = "application/x-tar") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if said is None else said))
        self.end_headers()
        self.wfile.write(body)

    def status(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def whole(self) -> bytes:
        """The body of the right answer."""
        return tar_of(self.members()) if self.command == "POST" else self.server.files[self.path]

    def log_message(self, *args: object) -> None:
        pass


# ------------------------------------------------------------------------------------------------- faults of both kinds
def hang_up(handler: Handler, right: Callable[[], None]) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def reset(handler: Handler, right: Callable[[], None]) -> None:
    body = handler.whole()
    handler.send_tar(body[: len(body) // 2], said=len(body))
    handler.wfile.flush()
    time.sleep(0.02)  # a reset overtakes what has not been read
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def status(code: int, **headers: str) -> Fault:
    return lambda handler, right: handler.status(code, **headers)


def truncated(handler: Handler, right: Callable[[], None]) -> None:
    body = handler.whole()
    handler.send_tar(body[: len(body) * 2 // 3], said=len(body))


def said_too_long(handler: Handler, right: Callable[[], None]) -> None:
    body = handler.whole()
    handler.send_tar(body, said=len(body) + 1000)


def said_too_short(handler: Handler, right: Callable[[], None]) -> None:
    body = handler.whole()
    handler.send_tar(body, said=len(body) // 2)


def wrong_bytes(handler: Handler, right: Callable[[], None]) -> None:
    handler.send_tar(bytes(len(handler.whole())))


def login_page(handler: Handler, right: Callable[[], None]) -> None:
    handler.send_tar(b"<html><form>user name, password</form></html>", kind="text/html; charset=utf-8")


def trickle(handler: Handler, right: Callable[[], None]) -> None:
    body = handler.whole()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    try:
        for byte in body[:40]:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass  # nobody waited


def silence(handler: Handler, right: Callable[[], None]) -> None:
    handler.server.awake.wait(20)


def redirect(code: int, address: str | None = None) -> Fault:
    return lambda handler, right: handler.status(code, Location=address or handler.path)


# -------------------------------------------------------------------------------------------------- of a file server
def no_ranges(handler: Handler, right: Callable[[], None]) -> None:
    handler.serve_file(ranges=False)


# ------------------------------------------------------------------------------------------------------ of the service
def tar_with(change: Callable[[list[tuple[str, bytes]]], Any]) -> Fault:
    return lambda handler, right: handler.serve_tar(change)


def renumbered(by: int) -> Fault:
    def change(members: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        return [
            (re.sub(r"/(\d+)-", lambda match: f"/{int(match[1]) + by}-", name), content) for name, content in members
        ]

    return tar_with(change)


def corrupt_tar(handler: Handler, right: Callable[[], None]) -> None:
    """The header of the second member is gone."""
    body = bytearray(handler.whole())
    with tarfile.open(fileobj=io.BytesIO(body)) as tar:
        second = tar.getmembers()[2]
    body[second.offset : second.offset + 512] = b"\xff" * 512
    handler.send_tar(bytes(body))


def flipped(content: bytes) -> bytes:
    """A cutout of which one pixel is another."""
    changed = bytearray(content)
    changed[-2880] ^= 1
    return bytes(changed)


def with_link(handler: Handler, right: Callable[[], None]) -> None:
    """The first member is a link to a file of the machine."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for number, (name, content) in enumerate(handler.members()):
            info = tarfile.TarInfo(name)
            if number == 0:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    handler.send_tar(file.getvalue())


class Server(http.server.ThreadingHTTPServer):
    """
    Attributes:
        files: path -> body, of the file server.
        faults: one for each request to come; good answers after the last.
        pause_s: before each answer.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[Fault | None] = []
        self.log = Log()
        self.pause_s = 0.0
        self.awake = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *args: object) -> None:
        """Clients that hang up are the point of the matter."""


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.awake.set()
            server.shutdown()
            thread.join()
