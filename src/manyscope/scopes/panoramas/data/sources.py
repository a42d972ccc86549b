"""Where panoramas come from: a source puts pictures and tables of questions into place, and says what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from manyscope.errors import DataError
from manyscope.registry import Registry
from manyscope.scopes.panoramas.data.turns import DIRECTIONS
from manyscope.tables.samples import UNLABELLED

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.panoramas.data.room import Room
    from manyscope.scopes.panoramas.settings import PanoramasDownload, PanoramasPreprocess
    from manyscope.tables.manifest import ManifestEntry

SOURCES = Registry(
    "panorama source",
    {
        "rooms": "manyscope.scopes.panoramas.simulate:Rooms",
        "csv": "manyscope.scopes.panoramas.data.csv_tables:Csv",
    },
    group="manyscope.panorama_sources",
)
PICTURES = "pictures"  # folder of the raw data
SKIP = "or set preprocess.bad_rows to 'skip'"
FEWEST = 5  # test pictures, the clusters without which no interval can be drawn


class Row(NamedTuple):
    """One question with one right answer.

    Attributes:
        line: of the file.
        url: of the picture, as the file has it.
        type: of the question; empty is "question".
        direction: one of DIRECTIONS that the question is about, or empty.
        picture: file of the picture, relative to raw/; empty where it could not be had.
    """

    line: int
    url: str
    query: str
    answer: str
    type: str = ""
    direction: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Table:
    """A file of questions.

    Attributes:
        file: where the user finds it, for messages.
        split: of all its rows; None: by a hash of the picture's name.
    """

    file: str
    split: str | None
    rows: tuple[Row, ...]

    def errors(self) -> Iterator[tuple[Row, DataError]]:
        """What is wrong with the texts of rows; the pictures are not looked at."""
        for row in self.rows:
            empty = [name for name, text in (("url", row.url), ("query", row.query)) if not text]
            if not row.answer and self.split != UNLABELLED:
                empty.append("annotation")
            found = allowed = None
            if empty:
                found = f"the row has no {' and no '.join(empty)}"
            elif row.direction and row.direction not in DIRECTIONS:
                found, allowed = f"direction {row.direction!r} is unknown", ", ".join(DIRECTIONS)
            if found:
                remedy = f"mend or remove the row, {SKIP}"
                yield row, DataError(found, place=f"{self.file}:{row.line}", allowed=allowed, remedy=remedy)


class Source(Protocol):
    """What `download.source` names: a class without arguments."""

    def download(self, settings: PanoramasDownload, raw: Path) -> Iterable[ManifestEntry]:
        """Put the raw files into `raw`; what is there already and right is kept."""

    def tables(self, settings: PanoramasDownload, raw: Path, manifest: pl.DataFrame) -> list[Table]:
        """The questions, in a fixed order."""

    def rooms(self, settings: PanoramasDownload, raw: Path) -> Mapping[str, Room]:
        """File of a picture, relative to raw/ -> the room that it shows; empty where pictures show no rooms."""

    def problems(self, settings: PanoramasDownload, checks: PanoramasPreprocess) -> Iterator[str]:
        """What can be said before the download, one sentence each with a place and a remedy.

        Args:
            checks: what the tables must pass in the stage preprocess.
        """


def find_source(name: str) -> Source:
    """
    Raises:
        ManyscopeError: the source is unknown, or no such class.
    """
    found: Source = SOURCES.make(name, "download", "tables", "rooms", "problems")
    return found
