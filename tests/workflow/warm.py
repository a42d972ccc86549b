"""Commands that begin in a fork of a process which has loaded PyTorch, Lightning and their like already.

Loading those is most of what a stage of a tiny experiment costs. A command that begins warm still is a process of its
own, with its own folder, environment, streams and exit code, and it imports Manyscope anew; only the packages of others
are there before it. What would be another process for a user in a way that matters begins cold: if variables are set
that packages read when they are loaded (`READ_WHEN_LOADED`), if lines are counted, and everything if MANYSCOPE_COLD is
set.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

PACKAGES = (
    "torch._dynamo", "pytorch_lightning", "torchvision", "mlflow.tracking", "polars", "pyarrow.parquet", "scipy.stats",
    "sklearn.neighbors", "sklearn.linear_model", "matplotlib.figure", "matplotlib.backends.backend_agg", "chromadb",
    "pydantic", "ruamel.yaml", "click", "snakemake.cli",
)  # fmt: skip
READ_WHEN_LOADED = (
    "PYTHON", "LD_", "COV", "OMP_", "OPENBLAS_", "MKL_", "NUMBA_", "CUDA", "TORCH", "PYTORCH", "POLARS_", "MPL", "HF_",
    "TRANSFORMERS_", "MLFLOW_", "XDG_", "HOME", "LANG", "LC_",
)  # fmt: skip
_LENGTH = struct.Struct("!I")


def chosen(environment: Any) -> dict[str, str]:
    """The variables that decide whether a command can begin warm."""
    return {name: value for name, value in environment.items() if name.startswith(READ_WHEN_LOADED)}


class Warm:
    """The process that is forked from, and programs that ask it to: `manyscope`, and `module` for `python -m`.

    Attributes:
        programs: the folder in which both are.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        folder = Path(self._folder.name)
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name, real in {"manyscope": str(Path(sys.executable).with_name("manyscope")), "module": ""}.items():
            ask = f"ask({str(folder / 'socket')!r}, {real!r})"
            path = f"sys.path.insert(0, {str(Path(__file__).parent)!r})"
            (self.programs / name).write_text(
                f"#!{sys.executable} -IS\nimport sys\n{path}\nfrom warm import ask\n{ask}\n"
            )
            (self.programs / name).chmod(0o755)
        # It ends when its standard input does, which is when this process ends.
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(folder / "socket")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._server.stdout is not None
        self.ready = self._server.stdout.readline() == b"ready\n"

    def command(self, words: list[str]) -> list[str]:
        """The same command, begun warm if it is `python -m`."""
        if words[:2] == [sys.executable, "-m"]:
            return [str(self.programs / "module"), *words[2:]]
        return words


def ask(address: str, real: str) -> None:
    """Have a fork do what this process was called for, in its folder and environment and with its streams; then end as
    the fork did. Where that cannot be, do it here.

    Args:
        real: the program to be run, or nothing for the module that is named first.
    """
    cold = [real, *sys.argv[1:]] if real else [sys.executable, "-m", *sys.argv[1:]]
    request = {"real": real, "words": sys.argv[1:], "folder": str(Path.cwd()), "environment": dict(os.environ)}
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(address)
        text = json.dumps(request).encode()
        socket.send_fds(server, [_LENGTH.pack(len(text))], [0, 1, 2])
        server.sendall(text)
        answers = server.makefile("r")
        pid = int(answers.readline() or -1)
    except OSError:
        pid = -1
    if pid < 0:
        os.execv(cold[0], cold)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, pass_on)
    code = int(answers.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def receive(asker: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is asked for, and the three streams."""
    head, streams, _, _ = socket.recv_fds(asker, _LENGTH.size, 3)
    if not head:
        raise EOFError("whoever asked is gone")
    left = _LENGTH.unpack(head)[0]
    parts = []
    while left:
        parts.append(asker.recv(left))
        left -= len(parts[-1])
        if not parts[-1]:
            raise EOFError("whoever asked is gone")
    return json.loads(b"".join(parts)), streams


def serve(address: str, own: dict[str, str]) -> tuple[dict[str, Any], list[int]]:
    """Fork for each that asks and has the same variables `own`. Returns in the fork alone."""
    alive = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    with socket.socket(socket.AF_UNIX) as listener, selectors.DefaultSelector() as watched:
        listener.bind(address)
        listener.listen(64)
        os.write(1, b"ready\n")
        os.dup2(0, 1)
        watched.register(listener, selectors.EVENT_READ)
        watched.register(alive, selectors.EVENT_READ)
        forks: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of the fork
        askers: dict[int, int] = {}  # the fork of each, by descriptor
        while True:
            for key, _ in watched.select():
                if key.fd == alive:
                    for pid, _ in forks.values():
                        os.kill(pid, signal.SIGKILL)
                    os._exit(0)
                elif key.fileobj is listener:
                    asker, _ = listener.accept()
                    try:
                        request, streams = receive(asker)
                    except (EOFError, OSError):  # killed before it had asked; the others still want their answers
                        asker.close()
                        continue
                    if chosen(request["environment"]) != own:
                        asker.close()
                    elif pid := os.fork():
                        asker.sendall(f"{pid}\n".encode())
                        fork = os.pidfd_open(pid)
                        forks[fork], askers[asker.fileno()] = (pid, asker), pid
                        watched.register(fork, selectors.EVENT_READ)
                        watched.register(asker, selectors.EVENT_READ)
                    else:
                        for one in (asker, *(other for _, other in forks.values())):
                            one.close()
                        os.close(alive)
                        return request, streams
                    for stream in streams:
                        os.close(stream)
                elif key.fd in forks:
                    pid, asker = forks.pop(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with suppress(OSError):
                        asker.sendall(f"{code}\n".encode())
                    if askers.pop(asker.fileno(), None):
                        watched.unregister(asker)
                    asker.close()
                    watched.unregister(key.fd)
                    os.close(key.fd)
                elif pid := askers.pop(key.fd, None):  # whoever asked was killed
                    watched.unregister(key.fileobj)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def become(request: dict[str, Any], streams: list[int]) -> NoReturn:
    """Do in this process what was asked for, and end it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()
    code: object = 0
    try:
        run(request["real"], request["words"], request["folder"])
    except SystemExit as ended:
        code = ended.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:  # as Python itself does
        traceback.print_exc()
        code = 1
    # What an interpreter does at its end, but for taking apart every object, for which all that is shared is copied.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def run(real: str, words: list[str], folder: str) -> None:
    if real:
        sys.argv[:] = [real, *words]
        sys.path[0] = str(Path(real).parent)
        runpy.run_path(real, run_name="__main__")
    else:
        sys.argv[:] = words
        sys.path[0] = folder
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    before = chosen(os.environ)  # packages set some
    for package in PACKAGES:
        with suppress(ImportError):
            importlib.import_module(package)
    gc.collect()
    gc.freeze()  # what was loaded is neither looked at nor copied when a fork collects its garbage
    become(*serve(sys.argv[1], before))
