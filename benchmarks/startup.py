"""What it costs before any work begins: the help of the command line, and planning the workflow."""

from __future__ import annotations

import json

from benchmarks.hyrax import PEER, hyrax_environment
from benchmarks.measure import OURS, ROOT, WORK, Command, Row, compile_packages, cpu_seconds, environment, side_by_side

_TIMES = 7
_SHARDS = 8


def run() -> list[Row]:
    hyrax = hyrax_environment()
    compile_packages(OURS / "python")
    env, logs = environment(), WORK / "startup"
    names = sorted(file.stem for file in (ROOT / "config" / "experiments").glob("*.yaml"))
    # With results of its own the plan holds every job, whatever was run before.
    chosen = [f"experiments={json.dumps(names)}", f"shards={_SHARDS}", f"results={logs / 'results'}"]
    plan: Command = [OURS / "snakemake", "--dry-run", "--quiet", "all", "--cores", "1", "--nolock", "--config", *chosen]
    with_path = {**env, "PATH": f"{OURS}:{env['PATH']}"}
    taken = side_by_side(
        _TIMES,
        ours=lambda: cpu_seconds([OURS / "manyscope", "--help"], env, logs / "help.log"),
        peer=lambda: cpu_seconds([hyrax / "hyrax", "--help"], env, logs / "hyrax-help.log"),
        plan=lambda: cpu_seconds(plan, with_path, logs / "plan.log"),
    )
    return [
        Row("print the help", taken["ours"], taken["peer"], PEER, "CPU s"),
        Row(f"plan {len(names)} experiments in {_SHARDS} shards", taken["plan"], None, None, "CPU s"),
    ]
