"""FITS cutouts: a folder of the user's as a source, and what every source with FITS files shares.

A source that fetches FITS files ends its download with `yield write_objects(raw, table, reading, source)`, and its
`cut` is `cut_objects(settings, raw)`. The table has a row for each file:

- object_id: String, repeats for each further filter;
- group: String, what a split never divides;
- filter: String, or null throughout where one file holds all bands;
- file: String, relative to `raw`, or null where there is none;
- problem: String or null, why the row's object cannot be used whatever its files hold;
- then anything that is known of the object; the first row of each object counts.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.data.linking import absolute, link
from manyscope.errors import DataError, SettingsError
from manyscope.log import logger, progress
from manyscope.scopes.galaxies.data.catalog import RESERVED, read_catalog, refuse_repeats
from manyscope.scopes.galaxies.data.pruning import check_pruned, pruned_table
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.stamps import SKY_RMS
from manyscope.scopes.galaxies.settings import FitsReading
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.parquet import read_metadata, read_table, write_table
from manyscope.tables.whole import explaining_full_disk

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import FitsSettings, GalaxiesDownload, GalaxiesPreprocess

OBJECTS = "objects.parquet"
IMAGES = "images"
_READING = "manyscope.fits_reading"
_OWN = ("object_id", "group", "filter", "file", "problem")
_OWN_SCHEMA: dict[str, type[pl.DataType]] = {"object_id": pl.String, "group": pl.String, "filter": pl.String}
# 17 digits and the filter, as the cutout service of the Hyper Suprime-Cam survey names its files.
_HSC_NAME = r"(?P<object_id>\d{17})_(?:.*_)?(?P<filter>HSC-[GRIZY])\.fits(?:\.gz|\.fz)?"
_BY_WAVELENGTH = "ubgvrizyjhk"
_LETTER = re.compile(r"(?:.*[-_. ])?([a-z])'?\d?")
_CHUNK = 256
_PEEKED = 32
_BORDER_PX = 4


class Fits:
    """The folder `download.fits.folder`, whose files are linked and never changed, with or without a catalog."""

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Link the files into raw/images/ and list the objects in raw/objects.parquet.

        Raises:
            SettingsError: no folder is named, or nothing says which files belong to which object.
            DataError: the folder, the catalog or one of its columns is missing; ids repeat without a filter; no file
                has a name of the pattern.
        """
        folder = _folder(settings.fits)
        table = _listed(settings, folder)
        for file in progress(table["file"].drop_nulls().unique(maintain_order=True).to_list(), "linking images"):
            yield link(raw, file, folder / Path(file).relative_to(IMAGES))
        yield write_objects(raw, table, settings.fits, str(folder))

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        return cut_objects(settings, raw)

    def problems(self, settings: GalaxiesDownload) -> Iterator[str]:
        try:
            table = _listed(settings, _folder(settings.fits))
        except (SettingsError, DataError) as error:
            yield str(error) if isinstance(error, SettingsError) else f"source 'fits': {error}"
            return
        missing = table.filter(pl.col("problem").is_not_null())
        if len(missing) == len(table):
            row = missing.row(0, named=True)
            yield f"source 'fits': no object can be used, {row['object_id']!r}: {row['problem']}; mend the folder"


def write_objects(raw: Path, table: pl.DataFrame, reading: FitsReading, source: str) -> ManifestEntry:
    """List the objects in raw/objects.parquet; see above for the columns. `problem` and `filter` may be left out."""
    for name in ("filter", "problem"):
        if name not in table.columns:
            table = table.with_columns(pl.lit(None, pl.String).alias(name))
    table = table.select(*_OWN, pl.exclude(*_OWN))
    kept = FitsReading(**reading.model_dump(include=set(FitsReading.model_fields)))
    write_table(raw / OBJECTS, table, {_READING: kept.model_dump_json()})
    return ManifestEntry(OBJECTS, source)


def cut_objects(settings: GalaxiesPreprocess, raw: Path) -> Cutouts:
    """The stamps of the objects in raw/objects.parquet, see `cut_files`."""
    table = read_table(raw / OBJECTS, _OWN_SCHEMA)
    return cut_files(table, FitsReading.model_validate_json(read_metadata(raw / OBJECTS)[_READING]), settings, raw)


def cut_files(table: pl.DataFrame, reading: FitsReading, settings: GalaxiesPreprocess, raw: Path) -> Cutouts:
    """Cut the middle of every object's images. Each file is read once; what is cut waits in an unnamed file in `raw`,
    so that memory does not grow with the data set.

    An object is left out, with its reason, if a file is missing or unreadable, a filter is missing or comes twice,
    images differ in size, a file has another number of bands, or, unless `preprocess.edge` pads, an image is smaller
    than a stamp.

    Args:
        table: as the head of this module has it.

    Returns:
        the stamps, with the column `coverage`: the share of a stamp that lies inside its image.

    Raises:
        DataError: more than `preprocess.pruned_max` of the objects would be left out.
        SettingsError: `hdu` and `bands` name different numbers of bands.
    """
    plan = _Plan.of(table, reading, raw)
    objects = len(plan.files) + len(plan.pruned)
    check_pruned(pruned_table(plan.pruned), objects, settings.pruned_max, raw)
    size, bands = settings.stamp_px, len(plan.bands)
    kept, coverage, extents = list[str](), list[float](), Counter[tuple[int, int]]()
    pruned = list(plan.pruned)
    with explaining_full_disk(raw / OBJECTS), tempfile.TemporaryFile(dir=raw) as spool:
        for object_id, files in progress(plan.files.items(), "reading images", len(plan.files)):
            try:
                planes = _read_object([raw / file for file in files], reading.hdu, bands)
                stamp, share = _stamp(planes, reading.normalise == "sky", settings)
            except _UnusableError as error:
                pruned.append((object_id, error.reason, error.detail))
                continue
            spool.write(stamp.tobytes())
            kept.append(object_id)
            coverage.append(share)
            extents[planes.shape[2], planes.shape[1]] += 1
        check_pruned(pruned_table(pruned), objects, settings.pruned_max, raw)
        spool.flush()
        shape = (len(kept), bands, size, size)
        stamps = np.memmap(spool, np.float32, "r", shape=shape) if kept else np.empty(shape, np.float32)
    if len(extents) > 1:
        small, large = min(extents), max(extents)
        logger.info("images have %d sizes, from %d x %d to %d x %d px", len(extents), *small, *large)
    known = table.unique("object_id", keep="first", maintain_order=True).drop("filter", "file", "problem", strict=False)
    rows = pl.DataFrame({"object_id": kept, "coverage": coverage}, {"object_id": pl.String, "coverage": pl.Float32})
    return Cutouts(
        (stamps[first : first + _CHUNK] for first in range(0, len(kept), _CHUNK)),
        rows.join(known, on="object_id", how="left", maintain_order="left").rename({"object_id": "sample_id"}),
        plan.bands,
        note={"hdu": reading.hdu, "normalise": reading.normalise},
        unit=SKY_RMS if reading.normalise == "sky" else "as in the files",
        pruned=pruned_table(pruned),
    )


def in_band_order(filters: Sequence[str]) -> list[str]:
    """From the bluest to the reddest if each name ends in another letter of u b g v r i z y j h k, else by name."""
    found = [_LETTER.fullmatch(name.lower()) for name in filters]
    letters = [match[1] if match else "" for match in found]
    known = all(letter and letter in _BY_WAVELENGTH for letter in letters) and len(set(letters)) == len(letters)
    place = dict(zip(filters, (_BY_WAVELENGTH.find(letter) for letter in letters), strict=True))
    return sorted(filters, key=lambda name: (place[name] if known else 0, name))


def read_planes(path: Path, hdu: int | str | Sequence[int | str] | None = None) -> np.ndarray:
    """The images of a FITS file, compressed or not, or of a .npy, as (bands, height, width) native floats.

    Scaled integers are scaled; blank pixels are NaN. A third axis is taken for bands.

    Args:
        hdu: extension by number or name; several are stacked; None: the first that holds an image.

    Raises:
        DataError: the file is missing, cut short or no FITS file, or has no such image.
    """
    from astropy.io import fits

    if not path.is_file():
        raise DataError("the file is missing", place=path)
    if path.suffix == ".npy":
        try:
            with path.open("rb") as file:
                # np.load would open an archive of arrays and a pickle too.
                return _planes(np.lib.format.read_array(file, allow_pickle=False))
        except Exception as error:  # a header that is parsed as Python can be wrong in a dozen ways
            reason = next(iter(str(error).split("\n")), "") or type(error).__name__
            raise DataError(f"not a readable array ({reason})", place=path) from error
    several = [hdu] if hdu is None or isinstance(hdu, int | str) else list(hdu)
    with strict_warnings():
        try:
            with fits.open(path, memmap=False) as file:
                images = [_planes(_image(file, one)) for one in several]
            if len({image.shape[1:] for image in images}) > 1:
                raise ValueError(f"extensions {several} have different sizes")
        except Exception as error:  # astropy raises a dozen types for what a broken file can hold
            reason = next(iter(str(error).split("\n")), "") or type(error).__name__
            raise DataError(f"not a readable FITS image ({reason})", place=path) from error
    return images[0] if len(images) == 1 else np.concatenate(images)


class _Filters:
    """Python's filters of warnings while anybody wants the strict ones."""

    lock = threading.Lock()
    users = 0
    others = warnings.catch_warnings()


@contextmanager
def strict_warnings() -> Iterator[None]:
    """What astropy warns of is nothing, or an error where a file is cut short or belies its checksums.

    The filters of warnings are those of all threads: the first to come sets them, the last to go puts them back.
    """
    with _Filters.lock:
        _Filters.users += 1
        if _Filters.users == 1:
            _Filters.others = warnings.catch_warnings()
            _Filters.others.__enter__()
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", "(?i).*(truncated|checksum|datasum)", UserWarning)
    try:
        yield
    finally:
        with _Filters.lock:
            _Filters.users -= 1
            if _Filters.users == 0:
                _Filters.others.__exit__(None, None, None)


def less_sky(planes: np.ndarray) -> np.ndarray:
    """Each band less the median of its border, over the border's rms (1.4826 times its median absolute deviation).

    A border without spread, as of a mask or of quantised noise, gives its standard deviation, else one.

    Args:
        planes: (bands, height, width); pixels that are not finite do not count.
    """
    inner = np.zeros(planes.shape[1:], bool)
    inner[_BORDER_PX:-_BORDER_PX, _BORDER_PX:-_BORDER_PX] = True
    result = np.empty(planes.shape, np.float64)
    for plane, into in zip(planes, result, strict=True):
        border = plane[~inner].astype(np.float64)
        border = border[np.isfinite(border)]
        level = float(np.median(border)) if len(border) else 0.0
        rms = 1.4826 * float(np.median(np.abs(border - level))) if len(border) else 0.0
        np.subtract(plane, level, out=into)
        into /= rms or (float(border.std()) if len(border) else 0.0) or 1.0
    return result


def placed(planes: np.ndarray, size_px: int, fill: float) -> tuple[np.ndarray, float]:
    """The middle (bands, size_px, size_px) of images of any size: pixel (height // 2, width // 2) becomes the middle
    one, what lies outside becomes `fill`; and the share that lies inside."""
    stamp = np.full((len(planes), size_px, size_px), fill, np.float32)
    inside = []
    for extent in planes.shape[1:]:
        first = extent // 2 - size_px // 2  # of the stamp, in pixels of the image
        inside.append((slice(max(first, 0), min(first + size_px, extent)), max(-first, 0)))
    (rows, top), (columns, left) = inside
    part = planes[:, rows, columns]
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which is missing
        stamp[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return stamp, part.shape[1] * part.shape[2] / size_px**2


class _UnusableError(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@dataclass(frozen=True)
class _Plan:
    """The files of each object that has all of them, in the order of the bands, and the objects that have not."""

    bands: list[str]
    files: dict[str, list[str]]
    pruned: list[tuple[str, str, str]]

    @classmethod
    def of(cls, table: pl.DataFrame, reading: FitsReading, raw: Path) -> _Plan:
        if "problem" not in table.columns:
            table = table.with_columns(problem=pl.lit(None, pl.String))
        rows = table.group_by("object_id", maintain_order=True).agg("filter", "file", "problem")
        split_by_filter = table["filter"].null_count() < len(table)
        if split_by_filter:
            bands = list(reading.bands or in_band_order(table["filter"].drop_nulls().unique().to_list()))
            logger.info("channels are, in this order: %s", ", ".join(bands))
        else:
            bands = _bands_of_files(table["file"].drop_nulls(), reading, raw)
        plan = cls(bands, {}, [])
        for object_id, filters, files, problems in rows.iter_rows():
            try:
                chosen = _of_filters(filters, files, problems, bands) if split_by_filter else _single(files, problems)
            except _UnusableError as error:
                plan.pruned.append((object_id, error.reason, error.detail))
            else:
                plan.files[object_id] = chosen
        return plan


def _of_filters(
    filters: list[str | None], files: list[str | None], problems: list[str | None], bands: list[str]
) -> list[str]:
    """One object's file of each band."""
    own = dict[str, tuple[str | None, str | None]]()
    for name, file, problem in zip(filters, files, problems, strict=True):
        if name is None:
            raise _UnusableError("row without a filter")
        if name in own and name in bands:
            raise _UnusableError("two files of one filter", name)
        own[name] = file, problem
    missing = [band for band in bands if band not in own]
    if missing:
        raise _UnusableError("filter missing", " ".join(missing))
    return [_usable(*own[band], band) for band in bands]


def _single(files: list[str | None], problems: list[str | None]) -> list[str]:
    """One object's only file."""
    if len(files) > 1:
        raise _UnusableError("several files and no filter")
    return [_usable(files[0], problems[0], "")]


def _usable(file: str | None, problem: str | None, band: str) -> str:
    if problem is not None:
        raise _UnusableError(problem, file or band)
    if file is None:
        raise _UnusableError("file missing", band)
    return file


def _bands_of_files(files: pl.Series, reading: FitsReading, raw: Path) -> list[str]:
    """Names of the bands that each file holds: as set, as the extensions are called, or as many as most files have."""
    extensions = reading.hdu if isinstance(reading.hdu, tuple) else None
    if reading.bands is not None:
        if extensions is not None and len(extensions) != len(reading.bands):
            raise SettingsError(f"download: hdu names {len(extensions)} extensions, bands {len(reading.bands)} bands")
        return list(reading.bands)
    if extensions is not None:
        return [str(name) for name in extensions]
    counts = Counter[int]()
    for file in files.gather(np.linspace(0, len(files) - 1, min(_PEEKED, len(files))).astype(int)):
        try:
            counts[len(read_planes(raw / file, reading.hdu))] += 1
        except DataError:
            continue  # left out when its turn comes
    most = max(counts, key=lambda count: (counts[count], count), default=1)
    return ["image"] if most == 1 else [f"band_{i}" for i in range(most)]


def _read_object(files: Sequence[Path], hdu: int | str | tuple[int | str, ...] | None, bands: int) -> np.ndarray:
    """(bands, height, width), of one file for each band or of one file for all."""
    each = bands // len(files)
    parts = []
    for file in files:
        try:
            planes = read_planes(file, hdu)
        except DataError as error:
            raise _UnusableError("unreadable file", f"{file.name}: {error.found}") from error
        if len(planes) != each:
            raise _UnusableError("another number of bands", f"{file.name}: {len(planes)} instead of {each}")
        parts.append(planes)
    if len({part.shape for part in parts}) > 1:
        raise _UnusableError("sizes differ between filters", " ".join(f"{p.shape[2]}x{p.shape[1]}" for p in parts))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _stamp(planes: np.ndarray, normalise: bool, settings: GalaxiesPreprocess) -> tuple[np.ndarray, float]:
    height, width = planes.shape[1:]
    if settings.edge == "error" and min(height, width) < settings.stamp_px:
        raise _UnusableError("smaller than a stamp", f"{width}x{height}")
    fill = np.nan if settings.pad_value is None else settings.pad_value
    return placed(less_sky(planes) if normalise else planes, settings.stamp_px, fill)


def _image(file: Any, wanted: int | str | None) -> np.ndarray:
    if wanted is not None:
        found = file[wanted]
        if not (found.is_image and found.data is not None):
            raise ValueError(f"extension {wanted!r} holds no image")
        return np.asarray(found.data)
    for found in file:
        if found.is_image and found.data is not None and np.ndim(found.data) >= 2:
            return np.asarray(found.data)
    raise ValueError("no extension holds an image")


def _planes(image: np.ndarray) -> np.ndarray:
    """(…, height, width) of any FITS type as (bands, height, width) native floats; further axes must have length 1."""
    if image.ndim < 2 or image.size == 0 or any(extent != 1 for extent in image.shape[:-3]):
        raise ValueError(f"an image of shape {image.shape}")
    if image.dtype.kind not in "iuf":
        raise ValueError(f"pixels of type {image.dtype}")
    dtype = np.float32 if image.dtype.kind == "f" and image.dtype.itemsize == 4 else np.float64
    return np.asarray(image, dtype).reshape(-1, *image.shape[-2:])


def _folder(settings: FitsSettings) -> Path:
    if settings.folder is None:
        raise SettingsError("download.fits.folder: the source 'fits' needs the folder of your files")
    folder = absolute(settings.folder)
    if not folder.is_dir():
        raise DataError("no such folder", place=folder, remedy="mend download.fits.folder")
    return folder


def _listed(settings: GalaxiesDownload, folder: Path) -> pl.DataFrame:
    """The files of every object, from the catalog, the names of the files, or both."""
    own, catalog = settings.fits, settings.catalog
    by_name = None if own.pattern is None else re.compile(_HSC_NAME if own.pattern == "hsc" else own.pattern)
    if catalog.file is not None and own.file_column is not None:
        return _listed_by_column(settings, folder, own.file_column, by_name)
    if by_name is None:
        where = "download.catalog.file" if catalog.file is None else "download.fits.file_column"
        raise SettingsError(
            f"download.fits.pattern: without {where}, the names of the files must tell the objects; set a pattern"
        )
    found = _scanned(folder, by_name)
    if catalog.file is None:
        return found.with_columns(group=pl.col("object_id"), problem=pl.lit(None, pl.String))
    return _listed_by_name(read_catalog(catalog), found)


def _listed_by_column(
    settings: GalaxiesDownload, folder: Path, file_column: str, by_name: re.Pattern[str] | None
) -> pl.DataFrame:
    filter_column = settings.fits.filter_column
    columns = [name for name in (file_column, filter_column) if name is not None]
    catalog = read_catalog(settings.catalog, columns)
    if filter_column is None:
        refuse_repeats(catalog, "set download.fits.filter_column")
    files, problems = [], []
    for object_id, name in catalog.select("object_id", file_column).iter_rows():
        file, problem = _named_file(folder, name, object_id, by_name)
        files.append(file)
        problems.append(problem)
    if not any(files):
        raise DataError(
            f"none of the {len(files)} files of column {file_column!r} is there, such as {catalog[file_column][0]!r}",
            place=folder,
            remedy="mend download.fits.folder",
        )
    filters = pl.lit(None) if filter_column is None else pl.col(filter_column).cast(pl.String).str.strip_chars()
    named = catalog.select("object_id", "group", filter=filters.cast(pl.String)).with_columns(
        file=pl.Series(files, dtype=pl.String), problem=pl.Series(problems, dtype=pl.String)
    )
    return named.hstack(catalog.drop(*columns, *_OWN, strict=False))


def _listed_by_name(catalog: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    refuse_repeats(catalog, "name each object once, or set download.fits.file_column")
    strangers = len(found.join(catalog, on="object_id", how="anti"))
    if strangers:
        logger.info("%d files are of objects that the catalog does not name", strangers)
    known = catalog.drop("filter", "file", "problem", strict=False)
    files = found.select("object_id", "filter", "file")
    return known.join(files, on="object_id", how="left", maintain_order="left_right").with_columns(
        problem=pl.lit(None, pl.String)
    )


def _named_file(
    folder: Path, name: object, object_id: str, by_name: re.Pattern[str] | None
) -> tuple[str | None, str | None]:
    """A row's file relative to `raw`, if it is there, and what speaks against it."""
    if not isinstance(name, str) or not name.strip():
        return None, "file missing"
    file = absolute(folder / name.strip())
    if not file.is_relative_to(folder):
        return None, "file outside the folder"
    if not file.is_file():
        return None, "file missing"
    path = f"{IMAGES}/{file.relative_to(folder).as_posix()}"
    if by_name is not None:
        match = by_name.fullmatch(file.name)
        if match is None or match["object_id"] != object_id:
            return path, "id differs from the file name"
    return path, None


def _scanned(folder: Path, by_name: re.Pattern[str]) -> pl.DataFrame:
    """Every file whose name fits, with object_id, filter (null if the names have none), file, and further groups.

    Raises:
        DataError: there is none.
    """
    rows, ignored, seen = [], 0, set[tuple[int, int]]()
    for place, folders, names in os.walk(folder, followlinks=True):
        state = Path(place).stat()
        if (state.st_dev, state.st_ino) in seen:  # by another link, perhaps one that leads back up
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders.sort()  # which of several ways to a folder counts does not depend on the disk
        for name in names:
            match = by_name.fullmatch(name)
            if match is None:
                ignored += 1
            else:
                rows.append({**match.groupdict(), "file": f"{IMAGES}/{(Path(place) / name).relative_to(folder)}"})
    if not rows:
        raise DataError(
            f"none of {ignored} files has a name of the pattern {by_name.pattern!r}",
            place=folder,
            remedy="mend download.fits.pattern or download.fits.folder",
        )
    if ignored:
        logger.info("%s: %d files have names of another form and are ignored", folder, ignored)
    further = [name for name in by_name.groupindex if name not in (*_OWN, *RESERVED)]
    schema: dict[str, type[pl.DataType]] = dict.fromkeys(("object_id", "filter", "file", *further), pl.String)
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema).sort("file")
