"""Checks of a SLURM cluster: its clients, accounting, partitions, the account, and what each rule asks for."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from manyscope.commands.doctor.clients import Nodes, ask, associations, nodes, refusal
from manyscope.commands.doctor.finding import Finding, Surroundings
from manyscope.commands.doctor.requests import Request, profile_values, requests
from manyscope.errors import SettingsError
from manyscope.settings.source import plain_value

_PROGRAMS = ("sbatch", "squeue", "sinfo", "srun", "scancel")
_STATUS_COMMAND = "slurm-status-command"
_NO_ACCOUNTING = re.compile(r"^AccountingStorageType\s*=\s*(\(null\)|\S*none)\s*$", re.MULTILINE)
_MIN_JOB_AGE = re.compile(r"^MinJobAge\s*=\s*(\d+)", re.MULTILINE)
_KEPT_S = 120  # three times the pause before the executor's first look: with less it does not trust squeue
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def cluster(surroundings: Surroundings) -> Iterator[Finding]:
    """One finding for each check; a single one where there is no cluster or it does not answer."""
    if not shutil.which("sbatch"):
        yield Finding("ok", "SLURM: not on a cluster (there is no sbatch)")
        return
    there, failure = nodes()
    answers = _clients(failure)
    yield answers
    if failure:
        return
    try:
        values = profile_values(surroundings.profile)
    except SettingsError as error:
        yield Finding("fail", f"SLURM: {error.problems[0]}", "name the profile with --profile")
        return
    yield _accounting(values, surroundings)
    asked = asked_for(values, surroundings)
    yield from _partitions(asked, there, surroundings)
    open_ = {group.partition for group in there if group.open}
    asked = [request for request in asked if set(request.partition.split(",")) <= open_]
    charged = _account(asked, surroundings)
    yield charged
    # Rules that lack the same GPUs share a line.
    yield from dict.fromkeys(
        finding
        for request in asked
        for finding in _request(request, there, surroundings, try_it=charged.state != "fail")
    )


def asked_for(values: Mapping[str, Any], surroundings: Surroundings) -> list[Request]:
    """What the rules of the profile ask for, for the experiments of the workflow."""
    experiments = list(surroundings.config.known) if surroundings.config else []
    return list(requests(values, surroundings.site, experiments))


def account(surroundings: Surroundings) -> str | None:
    """The account that jobs are charged to, as the workflow sets it; None for the user's default."""
    return surroundings.site.slurm_account or os.environ.get("SBATCH_ACCOUNT")


def line(surroundings: Surroundings, key: str, value: str | Mapping[str, str]) -> str:
    """What to write in the site file."""
    if isinstance(value, str):
        return f"write in {surroundings.site_file}: {key}: {_scalar(value)}"
    pairs = ", ".join(f"{name}: {_scalar(text)}" for name, text in value.items())
    return f"write in {surroundings.site_file}: {key}: {{{pairs}}}"


def _scalar(text: str) -> str:
    return text if _PLAIN.fullmatch(text) and plain_value(text) == text else json.dumps(text)


def _clients(failure: str) -> Finding:
    missing = [name for name in _PROGRAMS if not shutil.which(name)]
    if missing:
        return Finding("fail", f"SLURM: sbatch is here, but not {', '.join(missing)}", "complete the clients of SLURM")
    if failure:
        return Finding("fail", f"SLURM: sinfo fails ({failure})", "ask whether the controller is up")
    queue = ask("squeue", "-h", "-u", getpass.getuser(), "-o", "%i")
    if queue.error:
        return Finding("fail", f"SLURM: squeue fails ({queue.error})", "ask whether the controller is up")
    version = ask("sbatch", "--version").text.strip() or "SLURM"
    return Finding("ok", f"SLURM: {version}: sbatch, squeue and sinfo answer")


def _accounting(values: Mapping[str, Any], surroundings: Surroundings) -> Finding:
    """Does the command with which Snakemake will ask for the states of jobs work?"""
    # The executor's own default is sacct wherever the program is installed, with or without accounting.
    chosen = values.get(_STATUS_COMMAND) or ("sacct" if shutil.which("sacct") else "squeue")
    settings = ask("scontrol", "show", "config").text
    failure = ask("sacct", "-X", "-n", "-P", "-o", "JobID,State").error
    if not failure and _NO_ACCOUNTING.search(settings):
        failure = "AccountingStorageType is none"  # where some versions of sacct print nothing
    works = f"no accounting ({failure})" if failure else "accounting works"
    remedy = f"write in the profile {surroundings.profile}: {_STATUS_COMMAND}: squeue"
    if chosen == "sacct" and failure:
        return Finding("fail", f"SLURM: {works}, but the profile asks sacct for the states of jobs", remedy)
    if chosen == "sacct":
        what = 'sacct calls a cancelled job "CANCELLED by" somebody, for whose end Snakemake then waits for ever'
        return Finding("warn", f"SLURM: {works}; {what}", remedy)
    kept = _MIN_JOB_AGE.search(settings)
    if kept and int(kept[1]) < _KEPT_S:
        return Finding(
            "warn",
            f"SLURM: {works}; squeue forgets jobs {kept[1]} s after their end: the executor then asks sacct",
            f"ask the administrators for a MinJobAge of {_KEPT_S} or more",
        )
    return Finding("ok", f"SLURM: {works}; squeue is asked for the states of jobs")


# ----------------------------------------------------------------------------------------------- the partitions
def _partitions(asked: Sequence[Request], there: Sequence[Nodes], surroundings: Surroundings) -> Iterator[Finding]:
    """Is every partition of the profile there and up, with nodes that are?"""
    known = list(dict.fromkeys(group.partition for group in there))
    wanted = {name: request for request in reversed(asked) for name in request.partition.split(",")}
    missing = [name for name in wanted if name not in known]
    closed = [name for name in wanted if any(group.partition == name and not group.open for group in there)]
    listed = f"there are: {', '.join(known)}"
    for names, what in ((missing, "does not exist"), (closed, "is not up")):
        for name in names:
            request = wanted[name]
            remedy = f"name another one in {surroundings.profile}"
            if request.partition_key:
                guess = _likeliest(request, there)
                mapped = surroundings.site.slurm_partitions | {request.partition_key: guess}
                remedy = line(surroundings, "slurm_partitions", mapped) if guess else "ask the administrators for one"
            yield Finding("fail", f"SLURM: partition {name} ({request.rule}) {what}; {listed}", remedy)
    idle = [
        name
        for name in wanted
        if name not in (*missing, *closed)
        and not any(group.usable and group.count for group in there if group.partition == name)
    ]
    if idle:
        yield Finding("warn", f"SLURM: no node is up in partition {', '.join(idle)}", "jobs will wait until one is")
    if not missing and not closed and not idle:
        yield Finding("ok", f"SLURM: partitions {', '.join(sorted(wanted))} are up")


def _likeliest(request: Request, there: Iterable[Nodes]) -> str:
    """The open partition that fits a request best; empty if none is open."""

    def fit(group: Nodes) -> tuple[bool, ...]:
        types = [name for name, _ in group.gpus]
        long_enough = request.minutes is None or group.minutes is None or group.minutes >= request.minutes
        if not request.gpus:
            return long_enough, group.is_default, not types
        is_typed = request.gpu_type in types or any(request.gpu_key and request.gpu_key in name for name in types)
        return is_typed, bool(types), long_enough, request.gpu_key in group.partition

    candidates = [group for group in there if group.open]
    return max(candidates, key=fit).partition if candidates else ""


# -------------------------------------------------------------------------------------------------- the account
def _account(asked: Sequence[Request], surroundings: Surroundings) -> Finding:
    """Does SLURM accept the account, as far as it can be told without submitting?"""
    name, own = account(surroundings), associations()
    partitions = [f"--partition={asked[0].partition}"] if asked else []
    refused = refusal([*partitions, "--ntasks=1", "--time=1"], name)
    yours = f"yours: {', '.join(own)}" if own else "sacctmgr names none of yours"
    remedy = line(surroundings, "slurm_account", own[0]) if own else "ask the administrators for your account"
    is_foreign = bool(name and own) and str(name).lower() not in own  # SLURM keeps them in lower case
    if is_foreign or "account" in refused.lower():
        what = f"account {name} is not accepted" if name else "no account is set, and there is no default"
        said = f" ({refused})" if refused else ""
        return Finding("fail", f"SLURM: {what}{said}; {yours}", remedy)
    return Finding(
        "ok", f"SLURM: account {name} is accepted" if name else f"SLURM: the default account is used; {yours}"
    )


# ------------------------------------------------------------------------------------------------- the requests
def _request(request: Request, there: Sequence[Nodes], surroundings: Surroundings, try_it: bool) -> Iterator[Finding]:
    """Is there what a rule asks for, and would SLURM take the very request?

    Args:
        try_it: False where SLURM would refuse every request for another reason.
    """
    own = [group for group in there if group.partition in request.partition.split(",")]
    faults = [*_gpus(request, own, there, surroundings), *_limits(request, own, surroundings)]
    yield from faults
    if faults or not try_it:
        return
    parts = [
        f"{request.nodes or 1} node(s)",
        f"GPUs {request.gpus_of}{' on each' if request.per_node else ''}" if request.gpus else "",
        f"{request.memory_mb} MB" if request.memory_mb else "",
        f"{request.minutes} min" if request.minutes else "",
    ]
    what = f"SLURM: {request.rule}: {', '.join(part for part in parts if part)} in partition {request.partition}"
    refused = refusal(request.options(), account(surroundings))
    if refused:
        yield Finding("fail", f"{what}: refused ({refused})", f"try: sbatch --test-only {' '.join(request.options())}")
    else:
        yield Finding("ok", f"{what}: accepted")


def _gpus(
    request: Request, own: Sequence[Nodes], there: Sequence[Nodes], surroundings: Surroundings
) -> Iterator[Finding]:
    """Why the nodes of the partition lack the GPUs."""
    if not request.gpus:
        return
    if not any(group.gpus for group in there):
        yield Finding(
            "fail",
            "SLURM: no node of this cluster offers GPUs (GRES), which the profile asks for",
            "ask the administrators to name them in gres.conf, or use a profile without GPUs",
        )
        return
    here = _types(own)
    place = f"partition {request.partition}"
    wanted = f"GPU type {request.gpu_type}" if request.gpu_type else "GPU"
    if not here:
        fits = [group.partition for group in there if group.open and request.gpu_type in (*_types([group]), "")]
        guess = fits[0] if fits else _likeliest(request, [group for group in there if group.gpus])
        mapped = surroundings.site.slurm_partitions | {request.partition_key: guess}
        named = f"name {guess} for {request.rule} in {surroundings.profile}"
        remedy = line(surroundings, "slurm_partitions", mapped) if request.partition_key and guess else named
        offers = "; ".join(f"{name}: {', '.join(types)}" for name, types in _by_partition(there).items())
        yield Finding("fail", f"SLURM: no GPU in {place}; GPUs elsewhere: {offers}", remedy)
        return
    if request.gpu_type and request.gpu_type not in here:
        typed = [name for name in here if name]
        listed = ", ".join(typed) or "GPUs without a type"
        remedy = f"ask for GPUs without a type for {request.rule} in {surroundings.profile}"
        if typed:
            guess = next((name for name in typed if request.gpu_key and request.gpu_key in name.lower()), typed[0])
            mapped = surroundings.site.slurm_gpus | {request.gpu_key: guess}
            named = f"name {guess} for {request.rule} in {surroundings.profile}"
            remedy = line(surroundings, "slurm_gpus", mapped) if request.gpu_key else named
        yield Finding("fail", f"SLURM: no {wanted} in {place}, there: {listed}", remedy)
        return
    most = max(here[request.gpu_type] if request.gpu_type else max(here.values()), 0)
    on_each = request.gpus if request.per_node else -(-request.gpus // (request.nodes or 1))
    if on_each > most:
        yield Finding(
            "fail",
            f"SLURM: {request.rule}: {on_each} GPUs on a node, but those of {place} have {most}",
            f"ask for at most {most} for {request.rule} in {surroundings.profile}",
        )


def _types(groups: Iterable[Nodes]) -> dict[str, int]:
    """The types of GPU, with the most that one node has."""
    most: dict[str, int] = {}
    for group in groups:
        for name, count in group.gpus:
            most[name] = max(count, most.get(name, 0))
    return most


def _by_partition(groups: Iterable[Nodes]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for group in groups:
        for name, _ in group.gpus:
            if name not in found.setdefault(group.partition, []):
                found[group.partition].append(name or "without a type")
    return found


def _limits(request: Request, own: Sequence[Nodes], surroundings: Surroundings) -> Iterator[Finding]:
    """What is more than nodes or partition allow; SLURM itself may take such a job and let it wait for ever."""
    fitting = [group for group in own if not request.gpu_type or request.gpu_type in dict(group.gpus)] or own
    place, rule = f"partition {request.partition}", request.rule.partition(" of ")[0]
    memory_mb = max((group.memory_mb for group in fitting), default=0)
    limits = [group.minutes for group in own]
    longest = max((limit for limit in limits if limit is not None), default=None) if None not in limits else None
    nodes_there = sum(group.count for group in fitting)
    tasks, cpus = request.tasks_per_node or 1, max(group.cpus for group in fitting)
    over = [
        ("mem_mb", request.memory_mb, memory_mb, "MB of memory on a node"),
        ("runtime", request.minutes, longest, "minutes"),
        ("nodes", request.nodes, nodes_there, "nodes"),
        ("threads", request.cpus_per_task, cpus // tasks, f"CPUs for each of {tasks} process(es) on a node"),
    ]
    for resource, asked, most, unit in over:
        if asked is not None and most is not None and asked > most:
            yield Finding(
                "fail",
                f"SLURM: {request.rule}: {asked} {unit}, but {place} has at most {most}",
                f"set {resource} of {rule} in {surroundings.profile} to at most {most}",
            )
