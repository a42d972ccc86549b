"""What the settings of our side name by import path: the images that both sides work on, and a model that says no more
of an image than its vector."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.log import progress
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess
from manyscope.scopes.galaxies.simulate import BANDS, simulate
from manyscope.tables.manifest import ManifestEntry

if TYPE_CHECKING:
    from torch import nn

_CHUNK = 500


class Images:
    """Simulated galaxies, squeezed into (-1, 1) beforehand, so that neither side transforms anything.

    raw/images.npy is (n, 3, size, size) float32, raw/ids.npy (n,) text.
    """

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        drawn = settings.simulated
        images, ids = [], []
        for first in progress(range(0, drawn.count, _CHUNK), "simulate"):
            numbers = np.arange(first, min(first + _CHUNK, drawn.count))
            pixels, labels = simulate(settings.seed, numbers, drawn)
            images.append(np.tanh(np.arcsinh(pixels / 2) / 4))
            ids += labels["sample_id"].to_list()
        np.save(raw / "images.npy", np.concatenate(images).astype(np.float32))
        np.save(raw / "ids.npy", np.array(ids))
        for name in ("images.npy", "ids.npy"):
            yield ManifestEntry(name, f"simulated, seed {settings.seed}")

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        images, ids = np.load(raw / "images.npy", mmap_mode="r"), np.load(raw / "ids.npy").tolist()
        chunks = (images[first : first + _CHUNK] for first in range(0, len(images), _CHUNK))
        table = pl.DataFrame({"sample_id": ids, "group": ids})
        # With every group known, the splits have exactly the sizes that the fractions say.
        return Cutouts(chunks, table, BANDS, every_group=ids)


def vectors_only(shape: tuple[int, int, int]) -> nn.Module:
    """The autoencoder, with weights of the same names, for inference without reconstruction."""
    from torch import Tensor, nn

    from manyscope.scopes.galaxies.model.autoencoder import Autoencoder

    class VectorsOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = Autoencoder(shape)
            self.encoder, self.decoder = whole.encoder, whole.decoder

        def forward(self, images: Tensor) -> Tensor:
            return self.encoder(images)

        def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            raise NotImplementedError

    return VectorsOnly()
