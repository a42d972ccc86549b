"""`python -m benchmarks [NAME ...]`: measure, print a table, write results/benchmarks/<name>.json."""

from __future__ import annotations

import importlib
import sys

from benchmarks.measure import table, write_rows

NAMES = (
    "startup",
    "hyrax",
    "neutrinos",
    "ablation",
    "cells",
    "hash_grid",
    "panorama_views",
    "panoramas",
    "page",
    "served",
    "stores",
    "drawing",
)
LONG = ("scale",)  # only by name: these take more than half an hour


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - {*NAMES, *LONG})
    if unknown:
        print(f"error: unknown benchmark {', '.join(unknown)}; there are {', '.join(NAMES + LONG)}", file=sys.stderr)
        return 2
    for name in names or NAMES:
        rows = importlib.import_module(f"benchmarks.{name}").run()
        write_rows(name, rows)
        print(f"\n{name}\n{table(rows)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
