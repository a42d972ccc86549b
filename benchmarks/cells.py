"""The infer stage of `cells` beside micro_sam's own command: the same images, model, tiles and batches.

Both write the masks. Ours also measures every cell, pools its vector and writes the table.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import OURS, ROOT, WORK, Row, compile_packages, cpu_seconds, environment, side_by_side
from manyscope.scopes.cells.settings import CellsSettings
from manyscope.settings.loading import load_experiment
from manyscope.settings.paths import ExperimentPaths
from manyscope.training import checkpoints

_PEER = "micro_sam.automatic_segmentation 1.8"
_IMAGES, _TIMES, _BATCH = 24, 3, 4
_HOME = WORK / "cells"
_UNIT = "CPU s"


def run() -> list[Row]:
    compile_packages(OURS / "python")
    env, settings = environment(), _settings()
    results = _HOME / "results"
    paths = ExperimentPaths.of(results, "cells")

    def stage(name: str) -> list[str | Path]:
        values = json.dumps(settings.stage_values(name))
        return [OURS / "manyscope", name, "--experiment", "cells", "--results", results, "--settings", values]

    for name in ("download", "preprocess", "train"):
        subprocess.run(stage(name), check=True, cwd=ROOT, env=env)
    images = sorted((paths.prepared / "images").glob("*.tif"))
    thresholds = checkpoints.load(paths.model)["state_dict"]["chosen"].tolist()

    def ours() -> float:
        shutil.rmtree(paths.infer, ignore_errors=True)
        return cpu_seconds(stage("infer"), env, _HOME / "ours.log")

    def peer() -> float:
        masks = _HOME / "masks"
        shutil.rmtree(masks, ignore_errors=True)
        halo = str(settings.model.patch_px // 8)
        tile = str(settings.model.patch_px - 2 * int(halo))
        model = paths.train / "export" / "cells.pt"
        words = ["-o", masks, "-m", "vit_b", "-c", model, "--mode", "ais", "-n", "2", "-d", "cpu"]
        words += ["--batch_size", str(_BATCH), "--tile_shape", tile, tile, "--halo", halo, halo]
        for name, value in zip(("center_distance", "boundary_distance", "foreground"), thresholds[:3], strict=True):
            words += [f"--{name}_threshold", str(value)]
        command = [OURS / "python", "-m", "benchmarks.cells", *words, "-i", *images]
        return cpu_seconds(command, env, _HOME / "peer.log")

    found = side_by_side(_TIMES, ours=ours, peer=peer)
    what = f"embed and segment {len(images)} images of 256 px in 9 tiles each, AIS, whole command"
    return [Row(what, found["ours"], found["peer"], _PEER, _UNIT)]


def _settings() -> CellsSettings:
    """The experiment `cells` with a short training: how good the masks are does not matter here."""
    values = load_experiment("cells", folder=ROOT / "config" / "experiments").model_dump()
    values["download"]["simulated"]["count"] = _IMAGES
    values["train"] |= {"epochs": 2, "tracker": "none", "thresholds": (0.5,), "min_areas_px": (0,)}
    values["infer"]["batch_size"] = _BATCH
    return CellsSettings.model_validate(values)


def _peer(arguments: list[str]) -> None:
    """micro_sam's command, which has to be told of the small model."""
    from micro_sam.automatic_segmentation import main

    from manyscope.scopes.cells.model.export import known_to_micro_sam

    sys.argv = ["micro_sam.automatic_segmentation", *arguments]
    with known_to_micro_sam(_settings().model):
        main()


if __name__ == "__main__":
    _peer(sys.argv[1:])
