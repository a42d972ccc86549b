"""Asking SLURM through its command line clients, each within a time limit."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from manyscope.commands.doctor.finding import first_line

CLIENT_TIMEOUT_S = 20.0
_FIELDS = "%P|%a|%l|%D|%m|%c|%T|%G"  # a star at the first marks the default; the last may hold anything
_GRES = re.compile(r"gpu(?::(?P<type>[^:(,]+))?:(?P<count>\d+)")
_UNUSABLE = ("down", "drain", "fail", "maint", "inval", "power", "unk", "future")
_PREFIX = re.compile(r"^(\w+: )?(error: )?(allocation failure: )?", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What a client printed, or in `error` one line on why it did not."""

    text: str = ""
    error: str = ""


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike.

    Attributes:
        open: whether the partition takes jobs.
        minutes: its limit on wall time; None for none.
        gpus: how many a node has of each type; the type is empty where SLURM is told none.
        usable: whether the nodes are up.
    """

    partition: str
    is_default: bool
    open: bool
    minutes: int | None
    count: int
    memory_mb: int
    cpus: int
    usable: bool
    gpus: tuple[tuple[str, int], ...] = ()


def environment() -> dict[str, str]:
    """The environment without what an allocation that this process may run in tells the clients."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}


def ask(*command: str, timeout_s: float | None = None) -> Answer:
    """The answer of a client."""
    limit_s = timeout_s or CLIENT_TIMEOUT_S
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, env=environment(), stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return Answer(error=f"no answer in {limit_s:g} s")
    except OSError as error:
        return Answer(error=error.strerror or first_line(error))
    if done.returncode:
        return Answer(error=reason(done.stderr) or f"exit code {done.returncode}")
    return Answer(done.stdout)


def reason(stderr: str) -> str:
    """What a client grumbles about: the line of its errors that says most, without the name of the client."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if re.search("error|invalid|fail|unable|disabled", line, re.IGNORECASE)]
    return _PREFIX.sub("", (telling or lines or [""])[0])


def nodes() -> tuple[list[Nodes], str]:
    """Every partition's nodes, those alike together; and why there is no answer, where there is none."""
    answer = ask("sinfo", "-h", "-a", "-e", "-o", _FIELDS)
    found = [_nodes(line.split("|", 7)) for line in answer.text.splitlines() if line.count("|") >= 7]
    return found, answer.error or ("" if found else "it names no partition")


def _nodes(fields: list[str]) -> Nodes:
    partition, available, limit, count, memory, cpus, state, gres = (field.strip() for field in fields)
    gpus: dict[str, int] = {}
    for match in _GRES.finditer(gres):
        gpus[match["type"] or ""] = gpus.get(match["type"] or "", 0) + int(match["count"])
    return Nodes(
        partition=partition.rstrip("*"),
        is_default=partition.endswith("*"),
        open=available == "up",
        minutes=minutes(limit),
        count=_number(count),
        memory_mb=_number(memory),
        cpus=_number(cpus),
        usable=not state.lower().startswith(_UNUSABLE),
        gpus=tuple(sorted(gpus.items())),
    )


def minutes(limit: str) -> int | None:
    """A time limit as sinfo prints it, `days-hours:minutes:seconds`, in whole minutes; None for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if not match:
        return None
    days, hours, whole, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + whole


def _number(text: str) -> int:
    return int(re.match(r"\d*", text).group() or 0)  # type: ignore[union-attr]  # it matches nothing at the least


def associations() -> list[str]:
    """The accounts that the accounting knows for this user, in its order; none where it does not say."""
    answer = ask("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=Account")
    return list(dict.fromkeys(line.strip() for line in answer.text.splitlines() if line.strip()))


def refusal(options: Iterable[str], account: str | None) -> str:
    """Why SLURM would not take a job, in its words; empty if it would. Nothing is submitted."""
    charged = [f"--account={account}"] if account else []
    return ask("sbatch", "--test-only", "--job-name=manyscope-doctor", *charged, *options, "--wrap=true").error
