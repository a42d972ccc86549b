"""Training of a scene: the default one, on rays, with pictures on the way and a bundle at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from manyscope.errors import CheckpointError
from manyscope.log import logger
from manyscope.scopes.scenes.model.bundle import BUNDLE, build, save_bundle
from manyscope.scopes.scenes.model.infer import write_picture
from manyscope.scopes.scenes.model.rays import Rays
from manyscope.scopes.scenes.model.render import render_frame
from manyscope.training.checkpoints import load_weights
from manyscope.training.fit import fit as default_fit
from manyscope.training.launch import is_first_process
from manyscope.training.run import TrainingRun
from manyscope.training.seeds import seed_weights

if TYPE_CHECKING:
    from manyscope.scopes.scenes.data.clip import Clip
    from manyscope.scopes.scenes.settings import ScenesSettings

PICTURES = "pictures"
_TIMES = (0.0, 0.5, 1.0)  # of a picture on the way
_LONGEST_PX = 160  # of its frames: a look, at a small part of the cost of a frame


def fit(settings: ScenesSettings, clip: Clip, run: TrainingRun) -> None:
    """Train a graph, and leave in the run's folder of exports scene.ckpt, which holds all that editing needs, and a
    picture for each check: training frames, what they look like, and the difference.

    Raises:
        StoppedError: a signal came; the checkpoint to continue from is written.
        CheckpointError: the weights to start from are of another scene.
        ManyscopeError: the model or the sampler is unknown.
    """
    seed_weights(settings.train.seed)
    graph = build(settings.model, clip.placement, clip.size, clip.times, clip.objects)
    placed = {name: buffer.clone() for name, buffer in graph.named_buffers()}
    run.load_start(graph)
    other = [name for name, buffer in graph.named_buffers() if not torch.equal(buffer, placed[name])]
    if other:
        raise CheckpointError(
            f"the weights to start from are of a scene that was placed otherwise ({other[0]} and"
            f" {len(other) - 1} more differ)",
            place=run.start,
            allowed="an experiment of the same clip with the same settings of download and preprocess",
        )
    if settings.train.pictures:
        run.at_check(lambda network, step: draw(network, clip, run.export / PICTURES / f"step-{step:06d}.png"))
    default_fit(Rays(clip, settings.train), graph, settings.train, run)
    if is_first_process():
        load_weights(run.best, graph, run.scope, run.model)
        save_bundle(run.export / BUNDLE, graph.cpu(), clip.samples["index"].to_list())
        logger.info("the scene as a bundle: %s", run.export / BUNDLE)


def draw(graph: Any, clip: Clip, path: Path) -> None:
    """Training frames near the beginning, the middle and the end, one below the other: as filmed, as rendered, and how
    much they differ."""
    trained, every = clip.rows("train"), max(1, round(max(clip.size) / _LONGEST_PX))
    lines = []
    for time in _TIMES:
        row = int(trained[np.abs(clip.times[trained] - time).argmin()])
        filmed = clip.frames[row, ::every, ::every] / np.float32(255)
        rendered = render_frame(graph, float(clip.times[row]), every=every)
        lines.append(np.concatenate([filmed, rendered, np.abs(filmed - rendered)], axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, np.concatenate(lines))
