"""Where clips come from: a source puts raw files into place, and says what belongs to each frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from manyscope.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from manyscope.scopes.scenes.data.placing.camera import CameraPath
    from manyscope.scopes.scenes.settings import ScenesDownload
    from manyscope.tables.manifest import ManifestEntry

SOURCES = Registry(
    "scene source",
    {
        "synthetic": "manyscope.scopes.scenes.simulate:Synthetic",
        "folder": "manyscope.scopes.scenes.data.folder:Folder",
    },
    group="manyscope.scene_sources",
)
FRAMES, MASKS, DEPTH, BOXES, TRUTH = "frames", "masks", "depth", "boxes", "truth"  # folders of the raw data

# For each object's number where it is, (h, w) bool; None for an object of which that frame says nothing.
Masks = Mapping[int, "np.ndarray | None"]


@dataclass(frozen=True)
class RawClip:
    """A clip as its source has it; every picture of it has the same height h and width w.

    Attributes:
        source: what it is, for clip.json.
        indices: numbers of the frames, ascending; they are the places in time, and gaps among them count.
        frame: from the position among the indices to the frame, (h, w, 3) uint8.
        masks: from the position to the masks, or to None where no mask is known. An object that is not among them is
            not in the frame; two may overlap.
        depth: from the position to the relative depth, (h, w) float32, larger is farther.
        camera: the camera's path, its times those of the indices (0 is the first, 1 the last).
        boxes: from the position to the middles (x, y, z) of the boxes of some objects, in the world of `camera`.
        truth: a folder with the arrays of `manyscope.scopes.scenes.data.clip.Truth`, objects in the order of their
            numbers.
        notes: further entries of clip.json.
    """

    source: str
    indices: tuple[int, ...]
    frame: Callable[[int], np.ndarray]
    masks: Callable[[int], Masks | None]
    depth: Callable[[int], np.ndarray] | None = None
    camera: CameraPath | None = None
    boxes: Callable[[int], Mapping[int, Sequence[float]]] | None = None
    truth: Path | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """What `download.source` names: a class without arguments."""

    def download(self, settings: ScenesDownload, raw: Path) -> Iterable[ManifestEntry]:
        """Put the raw files into `raw`; what is there already and right is kept."""

    def clip(self, settings: ScenesDownload, raw: Path, manifest: pl.DataFrame) -> RawClip:
        """What the raw files hold."""

    def problems(self, settings: ScenesDownload) -> Iterator[str]:
        """What can be said before the download, one sentence each with a place and a remedy."""


def find_source(name: str) -> Source:
    """
    Raises:
        ManyscopeError: the source is unknown, or no such class.
    """
    found: Source = SOURCES.make(name, "download", "clip", "problems")
    return found
