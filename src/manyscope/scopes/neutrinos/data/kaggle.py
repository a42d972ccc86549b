"""The competition "IceCube - Neutrinos in Deep Ice": files of the user, or fetched with the official client."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import polars as pl

from manyscope.data.linking import absolute, link
from manyscope.errors import DataError, ManyscopeError, MissingDependencyError
from manyscope.log import logger, progress
from manyscope.scopes.neutrinos.data.detector import read_detector
from manyscope.scopes.neutrinos.data.reading import (
    check_events,
    read_meta,
    read_pulses,
    read_truth,
    typed,
    unknown,
)
from manyscope.scopes.neutrinos.data.sources import EventFile, Events
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.whole import explaining_full_disk, whole_file

if TYPE_CHECKING:
    from manyscope.scopes.neutrinos.settings import NeutrinosDownload

COMPETITION = "icecube-neutrinos-in-deep-ice"
GEOMETRY, TRAIN_META, TEST_META = "sensor_geometry.csv", "train_meta.parquet", "test_meta.parquet"
TRAIN_BATCHES, TEST_BATCH = range(1, 661), 661

_BATCH = re.compile(r"batch_(0|[1-9]\d*)\.parquet")
_FETCHED = "fetched"
_LARGEST_BYTES = 16 * 2**30  # of one unpacked file; train_meta.parquet, the largest, has a few GB
# Columns of a truth table that say where an event lies, or what the meta table says with authority.
_NO_TRUTH = ("event_id", "batch_id", "first_pulse_index", "last_pulse_index", "azimuth", "zenith")
# The client needs six without asking for it (kaggle 2.2.4).
_INSTRUCTIONS = (
    f"pip install kaggle six; accept the rules on kaggle.com/competitions/{COMPETITION}; put your API token into "
    "~/.kaggle/kaggle.json or KAGGLE_USERNAME and KAGGLE_KEY; or name a folder with the files in download.kaggle.folder"
)


class Kaggle:
    """Files of the competition, or any others in their schema."""

    def download(self, settings: NeutrinosDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Link the files of the user's folder into `raw`; without a folder fetch them into raw/fetched first.

        Raises:
            DataError: a file is missing in the folder, in the way of a link, or arrives broken.
            MissingDependencyError: the client or its credentials are missing, or the rules are not accepted.
        """
        chosen = settings.kaggle
        if chosen.folder is None:
            wanted = _competition_files(chosen.batches, chosen.test)
            files = _fetch(wanted, raw / _FETCHED)
            sources = {name: f"kaggle: {COMPETITION}/{name}" for name in files}
        else:
            files = folder_files(absolute(chosen.folder), chosen.batches, chosen.test)
            sources = {name: str(file) for name, file in files.items()}
        if chosen.folder is None or not absolute(chosen.folder).samefile(raw):
            _remove_links(raw, files)
        for name, file in files.items():
            yield link(raw, name, file, sources[name])

    def files(self, settings: NeutrinosDownload, raw: Path, manifest: pl.DataFrame) -> list[EventFile]:
        """
        Raises:
            DataError: a file is missing, or the geometry breaks a rule.
        """
        found = kaggle_files(raw, settings.kaggle.batches)
        return [file for file in found if file.labelled or settings.kaggle.test]


def folder_files(folder: Path, batches: Sequence[int], test: bool) -> dict[str, Path]:
    """Where each file of a data set in the competition's layout lies: its name in the layout -> file.

    Args:
        batches: numbers of the training files; empty is all.
        test: also those of test/, if they are there.

    Raises:
        DataError: one is missing.
    """
    if not folder.is_dir():
        raise DataError("no such folder", place=folder, remedy="mend download.kaggle.folder")
    found = _batches(folder / "train")
    if not batches and not found:
        raise DataError("no file train/batch_N.parquet", place=folder, remedy="mend download.kaggle.folder")
    numbers = sorted(set(batches) or found)
    names = [GEOMETRY, TRAIN_META, *(f"train/batch_{number}.parquet" for number in numbers)]
    tested = sorted(_batches(folder / "test")) if test else []
    if tested:
        names += [TEST_META, *(f"test/batch_{number}.parquet" for number in tested)]
    elif test:
        logger.info("%s: no file test/batch_N.parquet; only the training files are used", folder)
    for name in names:
        if not (folder / name).is_file():
            remedy = "mend download.kaggle.folder or download.kaggle.batches"
            if name == TEST_META:
                remedy = "put it beside train_meta.parquet, or set download.kaggle.test to false"
            raise DataError("the file is missing", place=folder / name, remedy=remedy)
    truths = [f"truth/truth_{number}.parquet" for number in [*numbers, *tested]]
    return {name: folder / name for name in [*names, *(name for name in truths if (folder / name).is_file())]}


def kaggle_files(raw: Path, batches: Sequence[int]) -> list[EventFile]:
    """The files raw/train/batch_N.parquet, labelled, then raw/test/batch_N.parquet, each by number.

    Args:
        raw: folder in the layout of the competition; truth/truth_N.parquet may add further truth to a batch.
        batches: numbers of the training files; empty is all. Those of test/ are always taken.

    Raises:
        DataError: a file is missing, or the geometry breaks a rule.
    """
    train, test = _batches(raw / "train"), _batches(raw / "test")
    for number in batches or (() if train else (1,)):
        if number not in train:
            raise DataError(
                "the file is missing", place=raw / f"train/batch_{number}.parquet", remedy="run the stage 'download'"
            )
    detector = read_detector(raw / GEOMETRY)
    return [
        EventFile(
            f"{prefix}-{number:06d}", number, labelled, detector, partial(_read, raw, number, labelled, len(detector))
        )
        for prefix, labelled, numbers in (("batch", True, set(batches) or train), ("test", False, test))
        for number in sorted(numbers)
    ]


def _remove_links(raw: Path, keep: Collection[str]) -> None:
    """Links of an earlier download with other settings would bring in batches that are no longer wanted."""
    patterns = (TEST_META, "train/batch_*.parquet", "test/batch_*.parquet", "truth/truth_*.parquet")
    for file in [file for pattern in patterns for file in raw.glob(pattern)]:
        if file.is_symlink() and file.relative_to(raw).as_posix() not in keep:
            file.unlink()


def _batches(folder: Path) -> set[int]:
    matches = (_BATCH.fullmatch(file.name) for file in folder.glob("batch_*.parquet"))
    return {int(match[1]) for match in matches if match}


def _read(raw: Path, number: int, labelled: bool, sensors: int) -> Events:
    path = raw / ("train" if labelled else "test") / f"batch_{number}.parquet"
    meta_path = raw / (TRAIN_META if labelled else TEST_META)
    pulses = read_pulses(path, sensors)
    meta, offsets = check_events(pulses, path, read_meta(meta_path, number, labelled), meta_path)
    truth_path, truth = raw / f"truth/truth_{number}.parquet", pl.DataFrame()
    if truth_path.is_file():
        truth = read_truth(truth_path, "event_id", meta["event_id"].to_numpy())
        truth = truth.drop(_NO_TRUTH, strict=False)
        truth = typed(truth, {"class": pl.String, "energy_gev": pl.Float64}, truth_path)
    return Events(
        meta["event_id"].cast(pl.String).to_list(),
        offsets,
        pulses.sensor_id,
        pulses.time_ns,
        pulses.charge,
        pulses.auxiliary,
        meta["azimuth"].to_numpy() if labelled else unknown(len(meta)),
        meta["zenith"].to_numpy() if labelled else unknown(len(meta)),
        truth,
    )


def _competition_files(batches: Sequence[int], test: bool) -> list[str]:
    names = [
        GEOMETRY,
        TRAIN_META,
        *(f"train/batch_{number}.parquet" for number in sorted(set(batches)) or TRAIN_BATCHES),
    ]
    return [*names, TEST_META, f"test/batch_{TEST_BATCH}.parquet"] if test else names


def _fetch(names: Sequence[str], folder: Path) -> dict[str, Path]:
    """Fetch what is not in the folder yet, each file whole; where it lies, by name."""
    files = {name: folder / name for name in names}
    missing = [name for name, file in files.items() if not _is_whole(file, file.suffix)]
    if missing:
        client = _client()
        for name in progress(missing, "fetching from Kaggle"):
            _fetch_file(client, name, files[name])
    return files


def _client() -> Any:
    # The client signs in when it is imported, prints what it has to say and may end the process.
    try:
        with redirect_stdout(io.StringIO()):
            client = import_module("kaggle.api.kaggle_api_extended").KaggleApi()
            client.authenticate()
    except ImportError as error:
        raise MissingDependencyError(
            f"the package 'kaggle' cannot be imported ({error})", place="download.kaggle", remedy=_INSTRUCTIONS
        ) from error
    except (Exception, SystemExit) as error:
        raise MissingDependencyError(
            f"Kaggle's client found no credentials that work ({_reason(error)})",
            place="download.kaggle",
            remedy=_INSTRUCTIONS,
        ) from error
    return client


def _fetch_file(client: Any, name: str, target: Path) -> None:
    arriving = target.with_name(f".{target.name}.arriving")  # the client goes on with what an earlier run left in it
    try:
        with explaining_full_disk(target), redirect_stdout(io.StringIO()):
            arriving.mkdir(parents=True, exist_ok=True)
            client.competition_download_file(COMPETITION, name, path=str(arriving), force=False, quiet=True)
    except ManyscopeError:
        raise
    except (Exception, SystemExit) as error:
        raise _refusal(error, name) from error
    try:
        with whole_file(target) as partial_file:
            _take(arriving, name, partial_file)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)


def _take(arriving: Path, name: str, target: Path) -> None:
    """Move or unpack what the client left, after checking that it is the file that was asked for."""
    base = PurePosixPath(name).name
    # The client names a file after the last part of an address, which may be quoted and end in .zip.
    found = [f for f in arriving.iterdir() if unquote(f.name).rsplit("/")[-1].removesuffix(".zip") == base]
    if len(found) != 1:
        left = ", ".join(sorted(f.name for f in arriving.iterdir())) or "nothing"
        raise DataError(f"Kaggle's client left {left}", place=name, allowed=f"{base} or {base}.zip")
    with found[0].open("rb") as file:
        packed = file.read(4) == b"PK\3\4"
    if packed:
        _unpack(found[0], name, target)
    else:
        found[0].replace(target)
    if not _is_whole(target, PurePosixPath(name).suffix):
        raise DataError("what arrived is broken", place=name, remedy="run the stage 'download' again")


def _unpack(archive: Path, name: str, target: Path) -> None:
    """Unpack the one file that the archive may hold; zipfile checks its length and checksum."""
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            names = [member.filename for member in members]
            if names not in ([name], [PurePosixPath(name).name]):
                raise DataError(
                    f"the archive holds {', '.join(names) or 'nothing'}", place=name, allowed=f"{name} alone"
                )
            if members[0].file_size > _LARGEST_BYTES:
                raise DataError(
                    f"the archive would unpack to {members[0].file_size:,} bytes",
                    place=name,
                    allowed=f"at most {_LARGEST_BYTES:,}",
                )
            with packed.open(members[0]) as source, target.open("wb") as unpacked:
                shutil.copyfileobj(source, unpacked, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(
            f"the archive is broken ({error})", place=name, remedy="run the stage 'download' again"
        ) from error


def _is_whole(file: Path, suffix: str) -> bool:
    """Whether a file is there and, where that can be told, not cut short: the schema of Parquet is at the end."""
    if not file.is_file() or not file.stat().st_size:
        return False
    if suffix != ".parquet":
        return True
    try:
        pl.read_parquet_schema(file)
    except (Exception, pl.exceptions.PanicException):
        return False
    return True


def _refusal(error: BaseException, name: str) -> ManyscopeError:
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if status == 403:
        return MissingDependencyError(
            "Kaggle does not give out this file (HTTP 403)",
            place=name,
            remedy=f"accept the competition's rules on kaggle.com/competitions/{COMPETITION} with the account of your "
            "credentials, then run the same command again",
        )
    if status == 401 or isinstance(error, SystemExit):
        return MissingDependencyError("Kaggle refused the credentials", place=name, remedy=_INSTRUCTIONS)
    if status == 404:
        return DataError(
            "the competition has no such file (HTTP 404)",
            place=name,
            allowed=f"training files {TRAIN_BATCHES[0]} to {TRAIN_BATCHES[-1]} in download.kaggle.batches",
        )
    return DataError(
        f"the file cannot be fetched ({_reason(error)})",
        place=name,
        remedy="run the same command again; files that have arrived are kept",
    )


def _reason(error: BaseException) -> str:
    """The first line of a message, without the part of addresses that may hold a signature."""
    first = str(error).strip().splitlines()[:1]
    return re.sub(r"\?\S+", "", first[0]) if first and not isinstance(error, SystemExit) else type(error).__name__


def source_problems(settings: NeutrinosDownload) -> Iterator[str]:
    """What `manyscope validate` can say of the files of the sources `kaggle` and `simulated` before any download."""
    if settings.source == "kaggle" and settings.kaggle.folder is not None:
        try:
            folder_files(absolute(settings.kaggle.folder), settings.kaggle.batches, settings.kaggle.test)
        except DataError as error:
            yield f"download.kaggle: {error}"
    if settings.source == "simulated":
        for name in ("geometry_file", "ice_file"):
            path = getattr(settings.simulated, name)
            if path is not None and not absolute(path).is_file():
                yield f"download.simulated.{name}: no file {path}; mend the path, or leave it out for the built-in one"
