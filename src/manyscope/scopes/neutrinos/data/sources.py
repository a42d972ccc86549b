"""Where events come from: a source fetches raw files, and reads each of them into the one form that is prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from manyscope.registry import Registry

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.neutrinos.data.detector import Detector
    from manyscope.scopes.neutrinos.settings import NeutrinosDownload
    from manyscope.tables.manifest import ManifestEntry

SOURCES = Registry(
    "neutrino source",
    {
        "simulated": "manyscope.scopes.neutrinos.simulate:Simulated",
        "kaggle": "manyscope.scopes.neutrinos.data.kaggle:Kaggle",
        "files": "manyscope.scopes.neutrinos.data.files:Files",
    },
    group="manyscope.neutrino_sources",
)


@dataclass(frozen=True)
class Events:
    """The events of one file. Pulses of an event are contiguous and in the order of time.

    Attributes:
        sample_id: id of each event, unique in the experiment.
        offsets: (events + 1,) int64; event i has the pulses offsets[i] … offsets[i + 1] - 1, at least one.
        sensor_id: (pulses,) int32, row in the detector's tables.
        time_ns: (pulses,) float64; the trigger lies near 10,000.
        charge: (pulses,) float32, photoelectrons, above 0.
        auxiliary: (pulses,) bool; False for hard local coincidence: a module near by on the string saw light too.
        azimuth, zenith: (events,) float64, where the particle came from, in [0, 2 pi) and [0, pi]; NaN is unknown.
        truth: a row for each event of whatever else is known (class, energy_gev, …); may have no columns.
    """

    sample_id: Sequence[str]
    offsets: np.ndarray
    sensor_id: np.ndarray
    time_ns: np.ndarray
    charge: np.ndarray
    auxiliary: np.ndarray
    azimuth: np.ndarray
    zenith: np.ndarray
    truth: pl.DataFrame

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class EventFile:
    """One raw file, read when it is needed.

    Attributes:
        name: the group of its events; a group is never divided between splits.
        number: what settings call the file by, or None.
        labelled: False for events that are only predicted.
        read: the validated content.
    """

    name: str
    number: int | None
    labelled: bool
    detector: Detector
    read: Callable[[], Events]


class Source(Protocol):
    """What `download.source` names: a class without arguments."""

    def download(self, settings: NeutrinosDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Put the raw files into `raw`; what is there already and right is kept."""

    def files(self, settings: NeutrinosDownload, raw: Path, manifest: pl.DataFrame) -> Iterable[EventFile]:
        """The raw files, in a fixed order."""


def find_source(name: str) -> Source:
    """
    Raises:
        ManyscopeError: the source is unknown, or no such class.
    """
    found: Source = SOURCES.make(name, "download", "files")
    return found
