"""Sources without telescopes: noise for tests, photographs with classes, and tables of features."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.data.fetching import checksum_of, fetch
from manyscope.data.linking import absolute, link
from manyscope.data.tables import is_parquet
from manyscope.errors import DataError, did_you_mean
from manyscope.scopes.galaxies.addresses import without_query
from manyscope.scopes.galaxies.data.catalog import catalog_path, read_catalog, refuse_repeats
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.stamps import FEATURE, GREY_LEVELS
from manyscope.tables.arrays import map_array
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.parquet import read_metadata, read_schema, read_slice, read_table, write_table
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess, RandomSettings

_CHUNK = 1000
_IDS: dict[str, type[pl.DataType]] = {"sample_id": pl.String}


class Random:
    """Uniform noise in [0, 1), some of it missing if asked for."""

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Draw chunks of images; a chunk depends on the seed and its number alone, so that more images change none."""
        own = settings.random
        for first in range(0, own.count, _CHUNK):
            images, table = raw / f"noise-{first:07d}.npy", raw / f"noise-{first:07d}.parquet"
            pixels, labels = draw_noise(settings.seed, first, min(_CHUNK, own.count - first), own)
            with whole_file(images) as partial, partial.open("wb") as file:
                np.save(file, pixels)
            write_table(table, labels)
            yield ManifestEntry(images.name, f"random, seed {settings.seed}")
            yield ManifestEntry(table.name, f"random, seed {settings.seed}")

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        """The images as they are.

        Raises:
            DataError: a file is missing or broken.
        """
        names = [name for name in manifest["path"] if name.endswith(".parquet")]
        table = pl.concat([read_table(raw / name, _IDS) for name in names])
        arrays = [map_array(raw / name.replace(".parquet", ".npy"), "run the stage download again") for name in names]
        bands, size = arrays[0].shape[1:3]
        return Cutouts(
            arrays,
            table.with_columns(group=pl.col("sample_id")),
            [f"band_{i}" for i in range(bands)],
            unit="uniform from 0 to 1",
            size_px=size,
        )


def draw_noise(seed: int, first: int, count: int, settings: RandomSettings) -> tuple[np.ndarray, pl.DataFrame]:
    """Images (count, bands, size_px, size_px) float32 and their sample_id, with a class if there are classes."""
    # one stream for each thing, so that one setting changes nothing else
    pixels, holes, classes = (np.random.default_rng((seed, first, stream)) for stream in range(3))
    images = pixels.random((count, settings.bands, settings.size_px, settings.size_px), np.float32)
    place = holes.random(images.shape, np.float32)
    images[place < settings.nan_fraction] = np.nan
    images[place >= 1 - settings.inf_fraction] = np.inf
    table = {"sample_id": [f"random-{i:07d}" for i in range(first, first + count)]}
    if settings.classes:
        table["class"] = [f"class_{i}" for i in classes.integers(settings.classes, size=count)]
    return images, pl.DataFrame(table)


class Cifar10:
    """60,000 colour photographs of 32 x 32 px in ten classes, by Krizhevsky (2009),
    https://www.cs.toronto.edu/~kriz/cifar.html.

    The binary version is read: records of one byte for the class and 3072 for the pixels. That for Python holds
    pickles, which can run anything when they are opened.
    """

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Fetch the archive, or link a copy.

        Raises:
            DataError: it cannot be had, or is not what the checksum is of.
        """
        own, target = settings.cifar10, raw / _CIFAR_ARCHIVE
        if "://" in own.archive:
            if own.checksum is None or not target.is_file() or not _is_right(target, own.checksum):
                fetch(own.archive, target, own.checksum, "or name a copy of the file in download.cifar10.archive")
            yield ManifestEntry(target.name, without_query(own.archive))
            return
        file = absolute(own.archive)
        if not file.is_file():
            raise DataError("no such file", place=file, remedy="mend download.cifar10.archive")
        if own.checksum is not None and not _is_right(file, own.checksum):
            raise DataError(
                f"the checksum is not {own.checksum}", place=file, remedy="fetch the file again, the binary version"
            )
        yield link(raw, target.name, file)

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        """Images in grey levels from -1 to 1, of all records in the order of the archive; the official division into
        training and test stays as the column official_split.

        Raises:
            DataError: the archive is broken or holds something else.
        """
        archive = raw / _CIFAR_ARCHIVE
        rows, names = list[tuple[str, str, int]](), list[str]()
        for split, member, records in _cifar_batches(archive, names):
            rows += [(f"cifar-{member}-{i:05d}", split, int(label)) for i, label in enumerate(records[:, 0])]
        strangers = [label for _, _, label in rows if label >= len(names)]
        if not rows or strangers:
            found = f"a record has the class {strangers[0]} of {len(names)}" if strangers else "it holds no batch"
            raise DataError(found, place=archive, allowed=f"{_CIFAR_ARCHIVE} in its binary version")
        table = pl.DataFrame(
            {
                "sample_id": [row[0] for row in rows],
                "class": [names[row[2]] for row in rows],
                "official_split": [row[1] for row in rows],
            }
        )
        return Cutouts(
            (_cifar_images(records) for _, _, records in _cifar_batches(archive, [])),
            table.with_columns(group=pl.col("sample_id")),
            ("blue", "green", "red"),
            unit=GREY_LEVELS,
            top_down=True,
            size_px=_CIFAR_PX,
        )


_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR_PX = 32
_CIFAR_RECORD = 1 + 3 * _CIFAR_PX**2
_LARGEST_MEMBER = 2**28  # bytes; a batch has a tenth of that


def _is_right(file: Path, checksum: str) -> bool:
    return checksum_of(file, checksum.partition(":")[0]) == checksum


def _cifar_batches(archive: Path, names: list[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """ "train" or "test", the batch's name, and its records (n, 3073) uint8; the names of the classes go into `names`.

    Nothing is unpacked: only bytes are read of members whose names are known.

    Raises:
        DataError: the archive is broken, or a batch is no row of whole records.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                stream = tar.extractfile(member) if member.isfile() else None
                if stream is None:
                    continue
                if name == "batches.meta.txt":
                    names += _read(stream, archive).decode("ascii", "replace").split()
                elif name.endswith(".bin"):
                    content = _read(stream, archive)
                    if not content or len(content) % _CIFAR_RECORD:
                        raise DataError(f"{name} has {len(content)} bytes, no row of whole records", place=archive)
                    split = "test" if name.startswith("test") else "train"
                    yield split, name.removesuffix(".bin"), np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"not a readable archive ({error})", place=archive, remedy="download it again") from error


def _read(stream: IO[bytes], archive: Path) -> bytes:
    content = stream.read(_LARGEST_MEMBER + 1)
    if len(content) > _LARGEST_MEMBER:
        raise DataError("a member is far larger than a batch", place=archive)
    return content


def _cifar_images(records: np.ndarray) -> np.ndarray:
    """(n, 3, 32, 32) float32 in -1…1, from blue to red; the records have red first."""
    pixels = records[:, 1:].reshape(-1, 3, _CIFAR_PX, _CIFAR_PX)[:, ::-1]
    return np.ascontiguousarray(pixels, np.float32) / 127.5 - 1


class Table:
    """Features of objects, such as the embeddings that another experiment has inferred: each object is an "image" of
    as many bands as there are features, of one pixel."""

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Link a Parquet table, or write the features of another kind of table as one; and list the objects with what
        else is known of them.

        Raises:
            SettingsError: no table is named.
            DataError: it is missing or not readable, ids repeat, or the columns of the features are missing or hold
                something else than numbers.
        """
        file, vectors = catalog_path(settings.catalog), settings.table.vectors
        names = [vectors] if isinstance(vectors, str) else list(vectors)
        if is_parquet(file, settings.catalog.format):
            schema = read_schema(file)
            _check_numbers(schema, names, file)
            objects = read_catalog(settings.catalog, without=names)
            yield link(raw, _VECTORS, file)
        else:
            objects = read_catalog(settings.catalog, names)
            _check_numbers(objects.schema, names, file)
            (raw / _VECTORS).unlink(missing_ok=True)
            write_table(raw / _VECTORS, objects.select(names))
            yield ManifestEntry(_VECTORS, str(file))
        refuse_repeats(objects, "keep one row of each object")
        write_table(raw / _OBJECTS, objects.drop(names, strict=False), {_NAMES: json.dumps(names)})
        yield ManifestEntry(_OBJECTS, str(file))

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        """The features, (objects, features, 1, 1), read piece by piece; null is missing.

        Raises:
            DataError: rows have different numbers of features.
        """
        objects = read_table(raw / _OBJECTS, {"object_id": pl.String, "group": pl.String})
        names: list[str] = json.loads(read_metadata(raw / _OBJECTS)[_NAMES])
        first = next(features(raw / _VECTORS, names, 1))
        bands = names if first.shape[1] == len(names) else [f"{names[0]}_{i}" for i in range(first.shape[1])]
        return Cutouts(
            (some[:, :, None, None] for some in features(raw / _VECTORS, names, _ROWS)),
            objects.rename({"object_id": "sample_id"}),
            bands,
            unit=FEATURE,
            size_px=1,
        )


_VECTORS = "vectors.parquet"
_OBJECTS = "objects.parquet"
_NAMES = "manyscope.features"
_ROWS = 2**15


def features(path: Path, names: Sequence[str], rows: int) -> Iterator[np.ndarray]:
    """The features of so many rows at a time, (rows, features) float32; null is NaN.

    Raises:
        DataError: a list has another length than the first.
    """
    table = pl.scan_parquet(path)
    total = table.select(pl.len()).collect().item()
    width = _width(table, names[0], path)
    for first in range(0, total, rows):
        some = read_slice(path, first, rows, names)
        parts = []
        for name in names:
            values = some[name]
            if values.dtype.is_nested():
                lengths = set(values.cast(pl.List(pl.Float32)).list.len().drop_nulls())
                if lengths - {width}:
                    raise DataError(
                        f"a list of column {name!r} has {min(lengths - {width})} numbers, the first {width}", place=path
                    )
                blank = pl.Series([[None] * width], dtype=pl.List(pl.Float32))
                lists = values.cast(pl.List(pl.Float32)).fill_null(blank)
                parts.append(lists.explode().cast(pl.Float32).fill_null(np.nan).to_numpy().reshape(-1, width))
            else:
                parts.append(values.cast(pl.Float32).fill_null(np.nan).to_numpy()[:, None])
        yield np.ascontiguousarray(np.concatenate(parts, 1), np.float32)


def _width(table: pl.LazyFrame, name: str, place: Path) -> int:
    """Numbers in the first list of a column; 1 for a column of numbers.

    Raises:
        DataError: no row has any number.
    """
    dtype = table.collect_schema()[name]
    if not dtype.is_nested():
        return 1
    lists = table.select(pl.col(name).cast(pl.List(pl.Float32))).filter(pl.col(name).list.len() > 0)
    first = lists.head(1).collect()
    if first.is_empty():
        raise DataError(f"no list of column {name!r} has any number", place=place)
    return len(first[name][0])


def _check_numbers(schema: Mapping[str, pl.DataType], names: Sequence[str], file: Path) -> None:
    """
    Raises:
        DataError: a column is missing, or of something else than numbers; or a column of lists is not the only one.
    """
    for name in names:
        if name not in schema:
            hint = did_you_mean(name, list(schema)) or "mend download.table.vectors"
            raise DataError(f"column {name!r} is missing", place=file, remedy=hint)
        dtype = schema[name]
        single = dtype.is_numeric() or dtype == pl.Boolean
        listed = isinstance(dtype, pl.List | pl.Array) and dtype.inner.is_numeric()
        if not (single or (listed and len(names) == 1)):
            raise DataError(
                f"column {name!r} has type {dtype}",
                place=file,
                allowed="one column of lists of numbers (in Parquet), or columns of numbers",
                remedy="mend download.table.vectors",
            )
