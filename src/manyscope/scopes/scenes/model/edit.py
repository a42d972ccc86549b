"""A trained scene with edits, written as frames and video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from manyscope.log import logger, progress
from manyscope.scopes.scenes.data.video import write_mp4, write_webp
from manyscope.scopes.scenes.model.bundle import BUNDLE, load_bundle
from manyscope.scopes.scenes.model.editing import edited
from manyscope.scopes.scenes.model.infer import write_picture
from manyscope.scopes.scenes.model.render import cast, render_frame
from manyscope.tables.whole import whole_folder

if TYPE_CHECKING:
    from manyscope.scopes.scenes.edits import ScenesEdits
    from manyscope.scopes.scenes.settings import ScenesSettings


def edit(settings: ScenesSettings, export: Path, edits: ScenesEdits, output: Path) -> list[Path]:
    """Write the folder `output`, whole: frames/INDEX.png, scene.mp4 and scene.webp.

    Args:
        export: the folder that the training left, with the bundle.

    Returns:
        what a user would open.

    Raises:
        CheckpointError: there is no bundle, or it is broken.
        ManyscopeError: an edit names what is not there.
    """
    graph, indices = load_bundle(export / BUNDLE, settings.model)
    graph.to("cuda" if torch.cuda.is_available() else "cpu")
    actors = edited(graph, cast(graph), edits.edits, indices)
    with whole_folder(output) as folder:
        files = [folder / "frames" / f"{index:05d}.png" for index in indices]
        steps = list(zip(files, graph.times.tolist(), strict=True))
        for file, time in progress(steps, "edit", len(steps)):
            write_picture(file, render_frame(graph, time, actors))
        for name, write in (("scene.mp4", write_mp4), ("scene.webp", write_webp)):
            write(folder / name, map(_pixels, files), settings.evaluate.video_fps)
    logger.info("%d frames with %d edits", len(files), len(edits.edits))
    return [output / "scene.mp4", output / "scene.webp", output / "frames"]


def _pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)
