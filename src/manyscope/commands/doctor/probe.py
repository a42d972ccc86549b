"""What a compute node sees, as one line of JSON. `manyscope doctor --compute-node` runs it in a job."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

from manyscope.commands.doctor.places import can_write, existing, missing_weights


def look(marker: Path, scratch: Path, weights: Path | None) -> dict[str, object]:
    """The answers, by name.

    Args:
        marker: file with its own name in it, in the folder of results.
        weights: None where none have to be there.
    """
    seen: dict[str, object] = {"host": platform.node(), "python": platform.python_version(), "torch": None, "gpus": []}
    seen["given_gpus"] = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    seen["has_driver"] = Path("/proc/driver/nvidia").exists()
    try:
        import torch

        seen |= {"torch": torch.__version__, "cuda": torch.version.cuda}
        seen["gpus"] = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    except (ImportError, OSError, RuntimeError) as error:
        seen["torch_error"] = str(error).partition("\n")[0]
    try:
        seen["is_shared"] = marker.read_text() == marker.name
    except OSError:
        seen["is_shared"] = False
    seen["scratch_writable"] = can_write(scratch)
    seen["scratch_free_gib"] = round(shutil.disk_usage(existing(scratch)).free / 2**30, 1)
    seen["missing_weights"] = missing_weights(weights) if weights else ""
    return seen


if __name__ == "__main__":
    places = [Path(text) for text in sys.argv[1:]]
    print(json.dumps(look(places[0], places[1], places[2] if len(places) > 2 else None)))
