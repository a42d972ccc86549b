"""A trained scene with edits, written as frames and video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from manyscope.log import logger, progress
from manyscope.scopes.scenes.data.video import write_mp4, write_webp
from manyscope.scopes.scenes.model.bundle import BUNDLE, load_bundle
from manyscope.scopes.scenes.model.editing import edited
from manyscope.scopes.scenes.model.infer import eight_bit, write_picture
from manyscope.scopes.scenes.model.render import cast, render
from manyscope.tables.whole import whole_folder

if TYPE_CHECKING:
    from manyscope.scopes.scenes.edits import ScenesEdits

_FPS = 10.0


def edit(export: Path, edits: ScenesEdits, output: Path) -> list[Path]:
    """Write the folder `output`, whole: frames/INDEX.png, scene.mp4 and scene.webp.

    Args:
        export: the folder that the training left, with the bundle.

    Returns:
        what a user would open.

    Raises:
        CheckpointError: there is no bundle, or it is broken.
        ManyscopeError: an edit names what is not there.
    """
    graph, indices = load_bundle(export / BUNDLE)
    graph.to("cuda" if torch.cuda.is_available() else "cpu")
    actors = edited(graph, cast(graph), edits.edits, indices)
    frames = []
    for index, time in progress(list(zip(indices, graph.times.tolist(), strict=True)), "edit", len(indices)):
        frames.append((index, eight_bit(render(graph, time, actors).frame)))
    with whole_folder(output) as folder:
        for index, frame in frames:
            write_picture(folder / "frames" / f"{index:05d}.png", frame / 255)
        write_mp4(folder / "scene.mp4", [frame for _, frame in frames], _FPS)
        write_webp(folder / "scene.webp", [frame for _, frame in frames], _FPS)
    logger.info("%d frames with %d edits", len(frames), len(edits.edits))
    return [output / "scene.mp4", output / "scene.webp", output / "frames"]
