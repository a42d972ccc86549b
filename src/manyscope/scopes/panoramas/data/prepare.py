"""From tables of questions to prepared files: every row and picture is checked, and each picture cut into views."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.data.linking import refuse
from manyscope.data.splits import split_by_hash
from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.panoramas.data.panoramas import (
    GEOMETRY,
    PICTURES,
    PREVIEW_PX,
    PREVIEWS,
    REFERENCES,
    REPORT,
    ROOMS,
    VIEWS,
    WORDS,
)
from manyscope.scopes.panoramas.data.pictures import check_picture, read_panorama, small
from manyscope.scopes.panoramas.data.room import Room, texts, write_rooms
from manyscope.scopes.panoramas.data.sources import FEWEST, SKIP, Row, Table
from manyscope.scopes.panoramas.data.turns import WORD
from manyscope.tables.manifest import file_digest
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import SPLITS, UNLABELLED
from manyscope.tables.whole import reserve, whole_file, write_json

if TYPE_CHECKING:
    from manyscope.scopes.panoramas.settings import PanoramasPreprocess

REPORT_ROWS = "report.parquet"
LEAST = {"train": 1, "validation": 1, "test": FEWEST}  # pictures of a split
# Of a picture that is in several splits, the rows of the first of these stay where bad rows are skipped.
_KEPT_FIRST = ("test", "validation", "train", UNLABELLED)
_UNSAFE = re.compile(r"[^\w.+-]+")
_LONGEST_NAME = 80
_STATES = ("kept", "duplicate", "skipped")
_ROWS_SCHEMA: dict[str, Any] = {"file": pl.String, "line": pl.Int64, "state": pl.String, "reason": pl.String}
_REFERENCES_SCHEMA: dict[str, Any] = {"sample_id": pl.String, "answer": pl.String}
_PICTURES_SCHEMA: dict[str, Any] = {
    "picture": pl.String,
    "file": pl.String,
    "source": pl.String,
    "split": pl.String,
    "width_px": pl.Int32,
    "height_px": pl.Int32,
}
_SAMPLES_SCHEMA: dict[str, Any] = {
    "sample_id": pl.String,
    "group": pl.String,
    "split": pl.String,
    "picture": pl.Int64,
    "question": pl.String,
    "answer": pl.String,
    "type": pl.String,
    "direction": pl.String,
    "references": pl.Int32,
}


@dataclass
class _Checked:
    """A row and what became of it."""

    table: Table
    row: Row
    state: str = "kept"
    reason: str = ""

    @property
    def place(self) -> str:
        return f"{self.table.file}:{self.row.line}"


@dataclass
class _Picture:
    """A panorama; files with the same bytes are one.

    Attributes:
        file: the first of them, relative to raw/.
        source: the url of the first row.
        name: unique, and fit to be the name of a file.
    """

    file: str
    source: str
    name: str
    width_px: int
    height_px: int
    split: str = ""
    rows: list[_Checked] = field(default_factory=list)

    @property
    def kept(self) -> list[_Checked]:
        return _kept(self.rows)


def prepare(
    tables: Sequence[Table], rooms: Mapping[str, Room], settings: PanoramasPreprocess, raw: Path, prepared: Path
) -> pl.DataFrame:
    """Write the files that `manyscope.scopes.panoramas.data.panoramas.Panoramas` reads, and report.parquet with what
    became of each row.

    Args:
        rooms: file of a picture, relative to raw/ -> the room that it shows; of all pictures or of none.

    Returns:
        The samples, one for each question about a picture, in the order of the tables.

    Raises:
        DataError: a row or a picture breaks a rule, and bad rows are not to be skipped; all that do are logged. Or a
            split has too few pictures, or two questions have one id.
    """
    from manyscope.scopes.panoramas.views.render import Renderer
    from manyscope.scopes.panoramas.views.strategies import find_views

    check = _Check(settings, raw)
    check.tables(tables)
    if check.goes_on:
        _check_splits(tables, [picture for picture in check.pictures if picture.kept])
    views = find_views(settings.views)
    views.save(prepared / GEOMETRY)
    renderer = Renderer(views, settings.views)
    shape = (len(views), 3, views.size_px, views.size_px)
    pictures = _render(check, renderer, shape, prepared)
    if check.errors and settings.bad_rows == "fail":
        refuse(check.errors)
    _check_splits(tables, pictures)  # without those that could not be decoded
    samples = _write(check, pictures, rooms, prepared)
    _report(check, pictures, samples, prepared)
    return samples


class _Check:
    """All rows and pictures, and everything that is wrong with them."""

    def __init__(self, settings: PanoramasPreprocess, raw: Path) -> None:
        self.settings, self.raw = settings, raw
        self.rows: list[_Checked] = []
        self.pictures: list[_Picture] = []
        self.errors: list[DataError] = []

    def tables(self, tables: Sequence[Table]) -> None:
        for table in tables:
            wrong = {row.line: error for row, error in table.errors()}
            for row in table.rows:
                checked = _Checked(table, row)
                self.rows.append(checked)
                if row.line in wrong:
                    self.fail([checked], wrong[row.line])
                elif not row.picture:
                    checked.state, checked.reason = "skipped", "the picture could not be fetched"
        self._find_pictures()
        self._deal()
        for picture in self.pictures:
            _drop_duplicates(picture)

    @property
    def goes_on(self) -> bool:
        return not self.errors or self.settings.bad_rows == "skip"

    def fail(self, rows: Sequence[_Checked], error: DataError) -> None:
        self.errors.append(error)
        for checked in rows:
            checked.state, checked.reason = "skipped", error.found

    def _find_pictures(self) -> None:
        of_file: dict[str, list[_Checked]] = defaultdict(list)
        for checked in _kept(self.rows):
            of_file[checked.row.picture].append(checked)
        known: dict[str, _Picture] = {}
        names: set[str] = set()
        for file, rows in progress(of_file.items(), "checking pictures", len(of_file)):
            try:
                size = check_picture(self.raw / file, self.settings.aspect_tolerance)
            except DataError as error:
                self.fail(rows, _of_row(error, rows[0]))
                continue
            digest = file_digest(self.raw / file)
            if digest not in known:
                url = rows[0].row.url
                known[digest] = _Picture(file, url, _name(url, digest, names), *size)
            known[digest].rows += rows
        self.pictures = list(known.values())

    def _deal(self) -> None:
        """Give each picture its split, and refuse those that tables put into several."""
        fractions = self.settings.validation_fraction, self.settings.test_fraction
        hashed = split_by_hash([picture.name for picture in self.pictures], self.settings.split_seed, *fractions)
        for picture, by_hash in zip(self.pictures, hashed, strict=True):
            first: dict[str, _Checked] = {}
            for checked in picture.rows:
                if checked.table.split:
                    first.setdefault(checked.table.split, checked)
            picture.split = next((split for split in _KEPT_FIRST if split in first), by_hash)
            if len(first) > 1:
                lost = [checked for checked in picture.rows if checked.table.split not in (None, picture.split)]
                where = " and ".join(f"{split} ({checked.place})" for split, checked in first.items())
                error = DataError(
                    f"the picture {picture.source!r} is in {where}",
                    place=lost[0].place,
                    allowed="each picture in one split",
                    remedy=f"take it out of the other tables, {SKIP}",
                )
                self.fail(lost, error)


def _kept(rows: Sequence[_Checked]) -> list[_Checked]:
    return [checked for checked in rows if checked.state == "kept"]


def _drop_duplicates(picture: _Picture) -> None:
    seen: dict[tuple[str, str], _Checked] = {}
    for checked in picture.kept:
        before = seen.setdefault((checked.row.query, checked.row.answer), checked)
        if before is not checked:
            checked.state, checked.reason = "duplicate", f"the same as {before.place}"


def _of_row(error: DataError, checked: _Checked) -> DataError:
    """An error of a picture's with the place where the picture is named."""
    found, remedy = f"{checked.row.url}: {error.found}", f"{error.remedy}, {SKIP}"
    return DataError(found, place=checked.place, allowed=error.allowed, remedy=remedy)


def _name(url: str, digest: str, taken: set[str]) -> str:
    """A name from the end of an address or path, and from the picture's digest if another has it already; it does not
    change when later pictures are added."""
    end = re.split(r"[?#]", url)[0] if "://" in url else url
    name = _UNSAFE.sub("_", Path(end.rstrip("/")).stem)[:_LONGEST_NAME].strip("._-") or "picture"
    if name in taken:
        name += f"-{digest[:16]}"
    taken.add(name)
    return name


def _check_splits(tables: Sequence[Table], pictures: Sequence[_Picture]) -> None:
    """
    Raises:
        DataError: a split has too few pictures, which training or evaluation would find only hours later.
    """
    found = Counter(picture.split for picture in pictures)
    short = [split for split in LEAST if found[split] < LEAST[split]]
    if not short:
        return
    remedy = f"add pictures, with questions and answers, to {_listed(short)}"
    if any(table.split is None for table in tables):
        remedy += (
            ", give each split a table of its own, or choose other values of preprocess.validation_fraction,"
            " preprocess.test_fraction and preprocess.split_seed, by which pictures are dealt"
        )
    raise DataError(
        f"of {sum(found.values())} pictures, {_listed([f'{split} has {found[split]}' for split in LEAST])}",
        place=", ".join(table.file for table in tables),
        allowed=f"at least {_listed([f'{count} in {split}' for split, count in LEAST.items()])}",
        remedy=remedy,
    )


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _render(check: _Check, renderer: Any, shape: tuple[int, ...], prepared: Path) -> list[_Picture]:
    """Write the views and previews of every picture that can be decoded. All are decoded even if a bad one lets the
    stage fail, so that every bad one is named; but then nothing more is rendered.

    Args:
        shape: of the views of a picture.

    Returns:
        the pictures in the order of the arrays.
    """
    done: list[_Picture] = []
    candidates = [picture for picture in check.pictures if picture.kept]
    files = {prepared / VIEWS: shape, prepared / PREVIEWS: (*PREVIEW_PX, 3)}
    arrays = []
    for file, size in files.items():
        arrays.append(np.lib.format.open_memmap(file, "w+", np.uint8, (len(candidates), *size)))
        reserve(file)
    for picture in progress(candidates, "rendering views"):
        try:
            panorama = read_panorama(check.raw / picture.file, check.settings.aspect_tolerance)
        except DataError as error:
            check.fail(picture.kept, _of_row(error, picture.kept[0]))
            continue
        if check.goes_on:
            for array, values in zip(arrays, (renderer(panorama), small(panorama, PREVIEW_PX)), strict=True):
                array[len(done)] = values
            done.append(picture)
    for file, array in zip(files, arrays, strict=True):
        array.flush()
        if check.goes_on and len(done) < len(candidates):
            _shorten(file, array, len(done))
    return done


def _shorten(file: Path, array: np.memmap, count: int) -> None:
    """Write the first of an array's rows in its place."""
    with whole_file(file) as partial:
        shorter = np.lib.format.open_memmap(partial, "w+", array.dtype, (count, *array.shape[1:]))
        for row in range(count):
            shorter[row] = array[row]
        shorter.flush()


def _write(check: _Check, pictures: list[_Picture], rooms: Mapping[str, Room], prepared: Path) -> pl.DataFrame:
    """The tables about the pictures; returns the samples."""
    write_table(
        prepared / PICTURES,
        pl.DataFrame(
            [(p.name, p.file, p.source, p.split, p.width_px, p.height_px) for p in pictures],
            schema=_PICTURES_SCHEMA,
            orient="row",
        ),
    )
    samples, references = [], []
    for number, picture in enumerate(pictures):
        asked: dict[str, list[_Checked]] = defaultdict(list)
        for checked in picture.kept:
            asked[checked.row.query].append(checked)
        named: dict[str, str] = {}
        for question, rows in asked.items():
            sample = f"{picture.name}-{hashlib.blake2b(question.encode(), digest_size=4).hexdigest()}"
            other = named.setdefault(sample, question)
            if other != question:
                raise DataError(
                    f"the questions {question!r} and {other!r} about {picture.source!r} get the same id {sample!r}",
                    place=rows[0].place,
                    remedy="word one of them otherwise",
                )
            answers = [] if picture.split == UNLABELLED else [checked.row.answer for checked in rows]
            first = rows[0].row
            samples.append(
                (
                    sample, picture.name, picture.split, number, question, answers[0] if answers else "",
                    first.type or "question", first.direction, len(answers),
                )
            )  # fmt: skip
            references += [(sample, answer) for answer in answers]
    write_table(prepared / REFERENCES, pl.DataFrame(references, schema=_REFERENCES_SCHEMA, orient="row"))
    learned = [text for p in pictures if p.split == "train" for c in p.kept for text in (c.row.query, c.row.answer)]
    if rooms:
        shown = [rooms[picture.file] for picture in pictures]
        write_rooms(prepared / ROOMS, [picture.name for picture in pictures], shown)
        learned += texts(room for room, picture in zip(shown, pictures, strict=True) if picture.split == "train")
    write_json(prepared / WORDS, sorted({word for text in learned for word in WORD.findall(text)}))
    return pl.DataFrame(samples, schema=_SAMPLES_SCHEMA, orient="row")


def _report(check: _Check, pictures: list[_Picture], samples: pl.DataFrame, prepared: Path) -> None:
    """report.json and report.parquet, and what a user should know of them in the log."""
    table = pl.DataFrame(
        [(c.table.file, c.row.line, c.state, c.reason) for c in check.rows], schema=_ROWS_SCHEMA, orient="row"
    )
    write_table(prepared / REPORT_ROWS, table)
    states = Counter(table["state"])
    resized = sum(picture.width_px != 2 * picture.height_px for picture in pictures)
    answered = samples.filter(pl.col("split") != UNLABELLED)["references"]
    report = {
        "rows": len(table),
        **{state: states[state] for state in _STATES},
        "reasons": dict(sorted(Counter(table.filter(pl.col("state") == "skipped")["reason"]).items())),
        "pictures": len(pictures),
        "pictures_resized": resized,
        "questions": len(samples),
        "references_per_question": {
            "least": answered.min(), "mean": answered.mean(), "most": answered.max(),
        },
        "splits": {
            split: {
                "pictures": sum(picture.split == split for picture in pictures),
                "questions": int((samples["split"] == split).sum()),
            }
            for split in (*SPLITS, UNLABELLED)
        },
    }  # fmt: skip
    write_json(prepared / REPORT, report)
    if states["duplicate"]:
        logger.info("%d of %d rows occur twice and count once", states["duplicate"], len(table))
    if states["skipped"]:
        logger.warning("%d of %d rows are skipped, see %s", states["skipped"], len(table), REPORT_ROWS)
        for error in check.errors:
            logger.warning("skipped: %s", error)
    if resized:
        logger.info("%d of %d pictures are not exactly 2:1 and were resampled", resized, len(pictures))
