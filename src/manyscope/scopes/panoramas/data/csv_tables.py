"""Tables of questions in CSV files."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from manyscope.data.linking import absolute, link, refuse
from manyscope.errors import DataError, did_you_mean
from manyscope.log import logger, progress
from manyscope.scopes.panoramas.data.fetch import fetch_pictures
from manyscope.scopes.panoramas.data.pictures import check_picture
from manyscope.scopes.panoramas.data.sources import PICTURES, Row, Table
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.samples import UNLABELLED

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.panoramas.data.room import Room
    from manyscope.scopes.panoramas.settings import CsvSettings, PanoramasDownload, PanoramasPreprocess

_TABLES = "tables"  # folder of the raw data

_NAMES = {"url": ("url",), "query": ("query", "instruction"), "annotation": ("annotation", "response")}
_OPTIONAL = ("type", "direction")
_ADDRESS = re.compile(r"https?://[^/]", re.IGNORECASE)
_OTHER_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_AFTER_PATH = re.compile(r"[?#]")
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")


class Csv:
    """The tables `download.csv.files`, with pictures on this machine or on the web."""

    def download(self, settings: PanoramasDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Link the tables and the pictures of this machine into raw/, and fetch the others, but for those that are
        there already.

        Raises:
            DataError: a table breaks a rule, or a picture cannot be had and is not to be skipped, or too many cannot;
                all that cannot are logged.
        """
        tables, errors = _tables(settings.csv)
        if errors:
            refuse(errors)
        wanted = _by_key(_pictures(tables))
        local = {key: absolute(key) for key, picture in wanted.items() if not picture.remote}
        lost = {key: _no_file(wanted[key]) for key, file in local.items() if not file.is_file()}
        remote = {key: raw / picture.path for key, picture in wanted.items() if picture.remote}
        for key, error in fetch_pictures(remote, settings.csv.pause_s).items():
            lost[key] = DataError(error.found, place=wanted[key].place, remedy=error.remedy)
        _check_lost(settings.csv, lost, len(wanted))
        for path, table in zip(_table_paths(settings.csv), tables, strict=True):
            yield link(raw, path, absolute(table.file))
        for key, picture in wanted.items():
            if key in lost:
                yield ManifestEntry(picture.path, key, "failed")
            else:
                yield link(raw, picture.path, local[key]) if key in local else ManifestEntry(picture.path, key)

    def tables(self, settings: PanoramasDownload, raw: Path, manifest: pl.DataFrame) -> list[Table]:
        """
        Raises:
            DataError: the manifest is of other tables or pictures.
        """
        states = dict(manifest.select("path", "state").iter_rows())
        found = []
        for path, own in zip(_table_paths(settings.csv), settings.csv.files, strict=True):
            rows = read_csv(raw / path, own.split != UNLABELLED) if path in states else []
            pictures = [_Picture.of(own.path, row) for row in rows]
            if not rows or any(picture.key and picture.path not in states for picture in pictures):
                raise DataError(
                    "the raw data are not of this table as it is now",
                    place=own.path,
                    remedy="run the stage download again",
                )
            files = [picture.path if states.get(picture.path) == "done" else "" for picture in pictures]
            with_files = (row._replace(picture=file) for row, file in zip(rows, files, strict=True))
            found.append(Table(own.path, own.split, tuple(with_files)))
        return found

    def rooms(self, settings: PanoramasDownload, raw: Path) -> Mapping[str, Room]:
        return {}

    def problems(self, settings: PanoramasDownload, checks: PanoramasPreprocess) -> Iterator[str]:
        """Reads the tables and the heads of the pictures on this machine; the log says what is in them."""
        tables, errors = _tables(settings.csv)
        pictures = list(_pictures(tables))
        if settings.csv.missing == "fail":
            local = [picture for picture in _by_key(pictures).values() if not picture.remote]
            errors += [_no_file(picture) for picture in local if not Path(picture.key).is_file()]
        bad = [error for table in tables for _, error in table.errors()]
        bad += _bad_pictures(pictures, checks.aspect_tolerance) + _leaks(pictures)
        if checks.bad_rows == "fail":
            errors += bad
        elif bad:
            logger.info("download.csv.files: %d bad rows or pictures will be skipped, the first: %s", len(bad), bad[0])
        for error in errors:
            yield f"download.csv.files: {error}"
        for table in tables:
            _log_facts(table)


@dataclass(frozen=True)
class _Picture:
    """A picture as a row names it.

    Attributes:
        row: the row.
        split: of its table.
        place: of the row, for messages.
        key: its address or absolute path; empty if the row names neither.
        remote: whether the key is an address.
        path: its file, relative to raw/.
    """

    row: Row
    place: str
    key: str
    remote: bool
    path: str
    split: str | None = None

    @classmethod
    def of(cls, table: str, row: Row, split: str | None = None) -> _Picture:
        remote = bool(_ADDRESS.match(row.url))
        if remote or not row.url or _OTHER_ADDRESS.match(row.url):
            key = row.url if remote else ""
        else:
            key = str(absolute(absolute(table).parent / row.url))
        suffix = PurePosixPath(_AFTER_PATH.split(key)[0] if remote else key).suffix.lower()
        digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        path = f"{PICTURES}/{digest}{suffix if _SUFFIX.fullmatch(suffix) else ''}"
        return cls(row, f"{table}:{row.line}", key, remote, path, split)


def _tables(settings: CsvSettings) -> tuple[list[Table], list[DataError]]:
    """The tables without their pictures, and what is wrong with their form."""
    if not settings.files:
        return [], [DataError("no table is named", place="download.csv.files", remedy="name your CSV files")]
    tables, errors = [], []
    for own in settings.files:
        rows, wrong = parse_csv(absolute(own.path), own.split != UNLABELLED, own.path)
        tables.append(Table(own.path, own.split, tuple(rows)))
        errors += wrong
        for row in rows:
            wrong_address = _wrong_address(row.url)
            if wrong_address:
                allowed = "http://, https://, or a path"
                errors.append(DataError(wrong_address, place=f"{own.path}:{row.line}", allowed=allowed))
    return tables, errors


def _wrong_address(url: str) -> str | None:
    if not _OTHER_ADDRESS.match(url):
        return None
    if not _ADDRESS.match(url):
        return f"the address {url!r} is of an unknown kind"
    try:
        parts = urlsplit(url)
        return None if parts.hostname and parts.port != 0 else f"the address {url!r} names no host"
    except ValueError as error:
        return f"the address {url!r} cannot be understood ({error})"


def _table_paths(settings: CsvSettings) -> list[str]:
    """Where each table is linked, relative to raw/."""
    return [f"{_TABLES}/{number:02d}.csv" for number in range(len(settings.files))]


def _pictures(tables: list[Table]) -> Iterator[_Picture]:
    """What each row of the tables names."""
    for table in tables:
        for row in table.rows:
            yield _Picture.of(table.file, row, table.split)


def _by_key(pictures: Iterable[_Picture]) -> dict[str, _Picture]:
    """The first row that names each picture."""
    first: dict[str, _Picture] = {}
    for picture in pictures:
        if picture.key:
            first.setdefault(picture.key, picture)
    return first


def _no_file(picture: _Picture) -> DataError:
    remedy = "mend the path, which is relative to the table, or set download.csv.missing to 'skip'"
    return DataError(f"there is no file {picture.row.url!r}", place=picture.place, remedy=remedy)


def _check_lost(settings: CsvSettings, lost: Mapping[str, DataError], wanted: int) -> None:
    """
    Raises:
        DataError: pictures cannot be had, and are not to be skipped or are too many.
    """
    if not lost:
        return
    if settings.missing == "fail":
        refuse(list(lost.values()))
    for error in lost.values():
        logger.warning("skipped: %s", error)
    logger.warning("%d of %d pictures cannot be had and are skipped", len(lost), wanted)
    if len(lost) > settings.missing_fraction * wanted:
        first = next(iter(lost.values()))
        raise DataError(
            f"{len(lost)} of {wanted} pictures cannot be had; the first: {first.found}",
            place="download.csv.missing_fraction",
            allowed=f"at most {settings.missing_fraction:.0%} of them",
            remedy="check the network and the addresses, or raise it",
        )


def _bad_pictures(pictures: list[_Picture], aspect_tolerance: float) -> list[DataError]:
    """What is wrong with pictures on this machine, each named once."""
    local = [p for p in _by_key(pictures).values() if not p.remote and Path(p.key).is_file()]
    errors = []
    for picture in progress(local, "checking pictures"):
        try:
            check_picture(Path(picture.key), aspect_tolerance)
        except DataError as error:
            found = f"{picture.row.url}: {error.found}"
            errors.append(DataError(found, place=picture.place, allowed=error.allowed, remedy=error.remedy))
    return errors


def _leaks(pictures: list[_Picture]) -> list[DataError]:
    """Pictures that tables put into several splits."""
    first: dict[str, _Picture] = {}
    errors: dict[str, DataError] = {}
    for picture in pictures:
        if not (picture.key and picture.split):
            continue
        before = first.setdefault(picture.key, picture)
        if before.split != picture.split:
            found = f"the picture {picture.row.url!r} is in {before.split} ({before.place}) and {picture.split}"
            remedy = "take it out of one of the tables"
            errors.setdefault(picture.key, DataError(found, place=picture.place, remedy=remedy))
    return list(errors.values())


def _log_facts(table: Table) -> None:
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in table.rows:
        answers[row.url, row.query].add(row.answer)
    twice = len(table.rows) - sum(len(found) for found in answers.values())
    counts = Counter(len(found) for found in answers.values())
    logger.info(
        "%s: %d rows, %d pictures, %d questions, %.2f references per question (%d to %d), %d rows twice",
        table.file, len(table.rows), len({row.url for row in table.rows}), len(answers),
        sum(n * times for n, times in counts.items()) / max(len(answers), 1),
        min(counts, default=0), max(counts, default=0), twice,
    )  # fmt: skip


def parse_csv(path: Path, answered: bool, place: str) -> tuple[list[Row], list[DataError]]:
    """The rows of a table, stripped of blanks at both ends, and what is wrong with its form.

    Args:
        answered: whether the column of the answers must be there.
        place: the file's name in messages.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        found = f"the table cannot be read ({error.strerror})"
        return [], [DataError(found, place=place, remedy="mend download.csv.files")]
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return [], [DataError(f"not UTF-8 ({error.reason})", place=f"{place}:{line}", remedy="save it as UTF-8")]
    return _parse(place, csv.reader(io.StringIO(text, newline=""), strict=True), answered)


def read_csv(path: Path, answered: bool = True) -> list[Row]:
    """The rows of a table.

    Raises:
        DataError: the table is missing or breaks a rule; all that do are logged.
    """
    rows, errors = parse_csv(path, answered, str(path))
    if errors:
        refuse(errors)
    return rows


def _parse(place: str, reader: Iterator[list[str]], answered: bool) -> tuple[list[Row], list[DataError]]:
    header: list[str] | None = None
    rows: list[Row] = []
    errors: list[DataError] = []
    columns: dict[str, int] = {}
    while True:
        line = reader.line_num + 1  # type: ignore[attr-defined]  # of the record's first line
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            return rows, [*errors, DataError(f"not CSV ({error})", place=f"{place}:{line}", remedy="mend the quotes")]
        if not fields:
            continue
        if header is None:
            header = [name.strip() for name in fields]
            columns, errors = _columns(place, header, answered)
            if errors:
                break
        elif len(fields) != len(header):
            errors.append(
                DataError(
                    f"the row has {len(fields)} fields, the header {len(header)}",
                    place=f"{place}:{line}",
                    remedy="put texts that hold a comma between quotes",
                )
            )
        else:
            text = {name: fields[column].strip() for name, column in columns.items()}
            answer, kind, direction = (text.get(name, "") for name in ("annotation", *_OPTIONAL))
            rows.append(Row(line, text["url"], text["query"], answer, kind, direction))
    if not rows and not errors:
        errors.append(DataError("the table has no rows", place=place, remedy="mend download.csv.files"))
    return rows, errors


def _columns(place: str, header: list[str], answered: bool) -> tuple[dict[str, int], list[DataError]]:
    """Where each column is that is read."""
    columns: dict[str, int] = {}
    errors = []
    for name, known in {**_NAMES, **{name: (name,) for name in _OPTIONAL}}.items():
        found = [i for i, column in enumerate(header) if column in known]
        if len(found) > 1:
            errors.append(DataError(f"column {name!r} is there {len(found)} times", place=f"{place}:1"))
        elif found:
            columns[name] = found[0]
        elif name in _NAMES and (answered or name != "annotation"):
            remedy = did_you_mean(name, header) or f"it has {', '.join(header)}"
            errors.append(
                DataError(
                    f"column {name!r} is missing",
                    place=f"{place}:1",
                    allowed="url,query,annotation or url,instruction,response",
                    remedy=remedy,
                )
            )
    return columns, errors
