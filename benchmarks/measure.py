"""Costs of whole commands, and the document of ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyscope.tables.whole import whole_file

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "benchmarks"
RESULTS = ROOT / "results" / "benchmarks"
OURS = Path(sys.executable).parent
THREADS = 2

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Row:
    """One cost of ours beside a peer's; both come from the same run on the same machine.

    Attributes:
        what: what was done.
        peer: None where there is no peer to compare with.
        unit: of both; the lower, the better.
    """

    what: str
    ours: float
    peer: float | None
    peer_name: str | None
    unit: str

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer else None

    def document(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "ours": _rounded(self.ours),
            "peer": _rounded(self.peer),
            "peer_name": self.peer_name,
            "ratio": _rounded(self.ratio),
            "unit": self.unit,
        }


def write_rows(name: str, rows: Sequence[Row]) -> None:
    """Write results/benchmarks/<name>.json, one line for each row."""
    lines = ",\n ".join(json.dumps(row.document()) for row in rows)
    with whole_file(RESULTS / f"{name}.json") as partial:
        partial.write_text(f"[{lines}]\n", encoding="utf-8")


def table(rows: Sequence[Row]) -> str:
    cells = [("what", "ours", "peer", "ratio", "unit")]
    cells += [(r.what, _shown(r.ours), _shown(r.peer), _shown(r.ratio, ".2f"), r.unit) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]:>{widths[3]}}  {row[4]}"
        for row in cells
    ]
    return "\n".join(lines)


def environment(**more: str | Path) -> dict[str, str]:
    """What every measured command sees: two threads that sleep while they wait, no bars, byte code that is kept.

    Threads that spin while they wait for a core which another program has would count its work as theirs.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MANYSCOPE", "MLFLOW"))}
    threads = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "NUMBA")
    return {
        **kept,
        **{f"{name}_NUM_THREADS": str(THREADS) for name in threads},
        "OMP_WAIT_POLICY": "passive",
        "TQDM_DISABLE": "1",
        **{key: str(value) for key, value in more.items()},
    }


@dataclass(frozen=True)
class Cost:
    """What a command took, with all processes that it waited for.

    Attributes:
        cpu_s: user and system seconds.
        wall_s: seconds on the clock.
        peak_mb: largest resident memory of one of its processes, in units of 2**20 bytes.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float


def cost(command: Command, env: Mapping[str, str], log: Path, succeeded: Sequence[int] = (0,)) -> Cost:
    """Run a command to its end. What it printed is in `log`.

    Raises:
        RuntimeError: another exit status than those that mean success.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words, start = [str(word) for word in command], time.perf_counter()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(words, cwd=ROOT, env=dict(env), stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen did not see the end of its child
    if process.returncode not in succeeded:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        raise RuntimeError(f"exit status {process.returncode} of {' '.join(words)}\n{end}")
    peak = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - start, peak)


def cpu_seconds(command: Command, env: Mapping[str, str], log: Path, succeeded: Sequence[int] = (0,)) -> float:
    """User and system seconds of a command, as `cost` measures them."""
    return cost(command, env, log, succeeded).cpu_s


def side_by_side(times: int, **sides: Callable[[], float]) -> dict[str, float]:
    """The median of each side, all of them run in turns: A B A B. A first turn fills caches and does not count."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(times + 1):
        for name, run in sides.items():
            seconds = run()
            if turn:
                found[name].append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def compile_packages(python: Path) -> None:
    """Compile the packages of an environment once: where byte code is not written, each import would count it."""
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    packages = Path(found.stdout.strip())
    done = WORK / "compiled" / packages.parents[2].name
    if done.exists() and done.stat().st_mtime > packages.stat().st_mtime:
        return
    # Some packages carry templates that are no Python: the exit status says nothing.
    subprocess.run([python, "-m", "compileall", "-qq", "-j", str(THREADS), packages], stdout=subprocess.DEVNULL)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _shown(value: float | None, form: str = ".4g") -> str:
    return "-" if value is None else f"{value:{form}}" if abs(value) < 1e5 else f"{value:,.0f}"
