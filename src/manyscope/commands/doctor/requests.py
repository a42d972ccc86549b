"""What the rules ask of SLURM, from a Snakemake profile, the site file, and the names of the experiments."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from manyscope.errors import SettingsError
from manyscope.settings import Site
from manyscope.settings.source import plain_value, read_layer

_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")
_PARTITION, _GPU = "MANYSCOPE_PARTITION_", "MANYSCOPE_GPU_"
_GRES = re.compile(r"gpu(?::(?!\d+$)([^:]+))?(?::(\d+))?")
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_MINUTES = {"s": 1 / 60, "m": 1, "h": 60, "d": 24 * 60, "w": 7 * 24 * 60}
# Snakemake evaluates the same texts with all builtins; these are what expressions on resources use.
_NAMES = {"__builtins__": {call.__name__: call for call in (int, float, len, max, min, round, str)}}


@dataclass(frozen=True)
class Request:
    """What one rule asks for; None where the profile does not say or the expression cannot be read.

    Attributes:
        rule: with the experiments that it is for, where they differ.
        partition_key: the key of `slurm_partitions` that chose the partition; empty for one that the profile names.
        gpu_type: SLURM's name; empty for any.
        gpu_key: the key of `slurm_gpus` that chose the type.
        gpus: on each node where `per_node`, else in all.
        memory_mb: on each node.
    """

    rule: str
    partition: str
    partition_key: str = ""
    gpu_type: str = ""
    gpu_key: str = ""
    gpus: int = 0
    per_node: bool = False
    nodes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int = 1
    memory_mb: int | None = None
    minutes: int | None = None
    extra: str = ""

    @property
    def gpus_of(self) -> str:
        """`a100:4`, or the number alone for any type."""
        return ":".join(part for part in (self.gpu_type, str(self.gpus)) if part)

    def options(self) -> list[str]:
        """The options of sbatch, as Snakemake's executor for SLURM writes them."""
        tasks = f"--ntasks-per-node={self.tasks_per_node}" if self.tasks_per_node else ""
        given = {
            f"--partition={self.partition}": True,
            f"--nodes={self.nodes}": self.nodes,
            tasks or "--ntasks=1": tasks or not self.gpus,
            f"--cpus-per-task={self.cpus_per_task}": True,
            f"--mem={self.memory_mb}": self.memory_mb,
            f"--time={self.minutes}": self.minutes,
            f"--gres=gpu:{self.gpus_of}" if self.per_node else f"--gpus={self.gpus_of}": self.gpus,
        }
        return [*(option for option, is_set in given.items() if is_set), *shlex.split(self.extra)]


def profile_values(profile: Path) -> dict[str, Any]:
    """The settings of a profile, from its newest file; the older form with lists of `NAME=VALUE` counts too.

    Raises:
        SettingsError: there is no file, or it cannot be read.
    """
    files = sorted(profile.glob("config*.yaml"), key=lambda file: (file.name.startswith("config.v"), file.name))
    if not files:
        raise SettingsError(f"{profile}: there is no profile (config.yaml or config.v9+.yaml)")
    values = dict(read_layer(files[-1]).values)
    default = _pairs(values.get("default-resources"))
    threads = _pairs(values.get("set-threads"))
    rules: dict[str, dict[str, Any]] = {}
    given = values.get("set-resources")
    if isinstance(given, dict):
        rules = {rule: _pairs(own) for rule, own in given.items()}
    else:
        for name, value in _pairs(given).items():
            rule, _, resource = name.partition(":")
            rules.setdefault(rule, {})[resource] = value
    groups = _pairs(values.get("groups"))
    return values | {
        "default-resources": default, "set-threads": threads, "set-resources": rules, "groups": groups
    }  # fmt: skip


def _pairs(given: Any) -> dict[str, Any]:
    if isinstance(given, dict):
        return given
    texts = [str(item) for item in given] if isinstance(given, list) else []
    return {name: plain_value(value) for name, _, value in (text.partition("=") for text in texts)}


def requests(values: Mapping[str, Any], site: Site, experiments: Sequence[str]) -> Iterator[Request]:
    """What each job of the profile asks for, once for experiments that ask the same; last, what all others do.

    A group of rules is one job, which lasts as long as all of them and here takes as much memory as all of them:
    Snakemake adds up what can run side by side. What a rule itself says beyond the profile is not seen.

    Args:
        values: as `profile_values` gives them.
    """
    groups = values["groups"]
    jobs = {rule: [rule] for rule in [*values["set-resources"], *values["set-threads"]] if rule not in groups}
    for rule, group in groups.items():
        jobs.setdefault(f"group {group}", []).append(rule)
    for name, rules in {**jobs, **({} if groups else {"other rules": [""]})}.items():
        found: dict[Request, list[str]] = {}
        for experiment in experiments or [""]:
            parts = [part for rule in rules if (part := _request(values, rule, site, experiment))]
            if parts:
                found.setdefault(_together(parts), []).append(experiment)
        for request, names in found.items():
            yield replace(request, rule=name if len(found) == 1 else f"{name} of {', '.join(names)}")


def _together(parts: Sequence[Request]) -> Request:
    """One job that does them all."""

    def added(numbers: Sequence[int | None]) -> int | None:
        return sum(number for number in numbers if number is not None) or None

    return replace(
        parts[0],
        cpus_per_task=max(part.cpus_per_task for part in parts),
        memory_mb=added([part.memory_mb for part in parts]),
        minutes=added([part.minutes for part in parts]),
    )


def _request(values: Mapping[str, Any], rule: str, site: Site, experiment: str) -> Request | None:
    """None where no partition can be read."""
    resources = {**values["default-resources"], **values["set-resources"].get(rule, {})}
    threads = values["set-threads"].get(rule, 1)
    environment = {**os.environ, **site.environment()}

    def value(name: str) -> Any:
        return _evaluated(resources.get(name), environment, experiment)

    def number(name: str) -> int | None:
        return _whole(value(name))

    partition = value("slurm_partition")
    if partition is None:
        return None
    gpus, per_node, gpu_type = number("gpu") or 0, False, str(value("gpu_model") or "")
    if gpu_type and "gpu" not in resources:
        gpus = 1  # as the executor has it
    gres = _GRES.fullmatch(str(value("gres") or ""))
    if gres:
        gpus, per_node, gpu_type = int(gres[2] or 1), True, gres[1] or ""
    return Request(
        rule="",
        partition=str(partition),
        partition_key=_key(resources.get("slurm_partition"), _PARTITION, str(partition), site.partitions),
        gpu_type=gpu_type if gpus else "",
        gpu_key=_key(resources.get("gres" if per_node else "gpu_model"), _GPU, gpu_type, site.gpus) if gpus else "",
        gpus=gpus,
        per_node=per_node,
        nodes=number("nodes"),
        tasks_per_node=number("tasks_per_node") if value("mpi") else None,
        cpus_per_task=_whole(_evaluated(threads, environment, experiment)) or 1,
        memory_mb=number("mem_mb"),
        minutes=_minutes(value("runtime")),
        extra=str(value("slurm_extra") or ""),
    )


def _evaluated(given: Any, environment: Mapping[str, str], experiment: str) -> Any:
    """What Snakemake makes of a resource: variables filled in, then Python where it is Python; None if unreadable."""
    if not isinstance(given, str):
        return given
    text = _VARIABLE.sub(lambda match: environment.get(match[1] or match[2], match[0]), given)
    names = {"wildcards": SimpleNamespace(experiment=experiment), "attempt": 1}
    try:
        value = eval(text, dict(_NAMES), names)
    except (NameError, SyntaxError):
        return text
    except Exception:  # an expression can raise anything; on what only a job knows, such as its input, it does
        return None
    return value if isinstance(value, str | int | float) else text


def _whole(given: Any) -> int | None:
    return int(given) if isinstance(given, int | float) and not isinstance(given, bool) else None


def _key(given: Any, prefix: str, chosen: str, known: Mapping[str, str]) -> str:
    """The key of the site file behind a variable in a text of the profile."""
    names = [match[1] or match[2] for match in _VARIABLE.finditer(str(given))]
    keys = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    for key, name in keys.items():
        own = next((one for one in known if one.upper() == key), key.lower())
        if chosen in (known.get(own), f"${name}", f"${{{name}}}"):
            return own
    return ""


def _minutes(given: Any) -> int | None:
    """A wall time of a profile: minutes, or text such as 56h or 2d."""
    if isinstance(given, int | float):
        return int(given)
    spans = _SPAN.findall(str(given or ""))
    return round(sum(float(number) * _MINUTES[unit] for number, unit in spans)) or None
