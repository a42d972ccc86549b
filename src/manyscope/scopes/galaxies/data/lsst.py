"""Cutouts of the coadds of the Rubin Observatory, from a Butler."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.data.fetching import Traffic
from manyscope.errors import DataError, MissingDependencyError, SettingsError
from manyscope.log import logger
from manyscope.scopes.galaxies.data.catalog import read_targets
from manyscope.scopes.galaxies.data.fits import cut_objects, read_planes
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.transfers import (
    Transfers,
    UnansweredError,
    Wanted,
    file_name,
    what_is_wrong,
)
from manyscope.scopes.galaxies.settings import FitsReading
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess, LsstSettings

_SECTION = "download.lsst"
_TOGETHER = 100  # objects of a patch in one piece of work
Butlers = Callable[[], Any]


@dataclass(frozen=True)
class Box:
    """Whole pixels, `x_end` and `y_end` excluded, in the pixel coordinates of the sky map."""

    x: int
    y: int
    x_end: int
    y_end: int

    @classmethod
    def of(cls, box: Any) -> Box:
        """Of a box of lsst.geom."""
        return cls(box.getBeginX(), box.getBeginY(), box.getEndX(), box.getEndY())

    @property
    def shape(self) -> tuple[int, int]:
        return self.y_end - self.y, self.x_end - self.x

    def contains(self, other: Box) -> bool:
        return self.x <= other.x and self.y <= other.y and other.x_end <= self.x_end and other.y_end <= self.y_end


@dataclass(frozen=True)
class Image:
    """Pixels, (height, width), and where they are."""

    pixels: np.ndarray
    box: Box

    def cut(self, box: Box) -> np.ndarray:
        """What lies in a box, (height, width) float32; NaN where the image does not reach."""
        cutout = np.full(box.shape, np.nan, np.float32)
        x, y = max(box.x, self.box.x), max(box.y, self.box.y)
        x_end, y_end = min(box.x_end, self.box.x_end), min(box.y_end, self.box.y_end)
        if x < x_end and y < y_end:
            part = self.pixels[y - self.box.y : y_end - self.box.y, x - self.box.x : x_end - self.box.x]
            cutout[y - box.y : y_end - box.y, x - box.x : x_end - box.x] = part
        return cutout


class Images:
    """The images used last, at most `most`; one Butler for each thread, since threads cannot share one."""

    def __init__(self, butlers: Butlers, own: LsstSettings) -> None:
        self._butlers, self._own = butlers, own
        self._thread, self._lock = threading.local(), threading.Lock()
        self._images: OrderedDict[tuple[int, int, str], Image] = OrderedDict()

    @property
    def butler(self) -> Any:
        if not hasattr(self._thread, "butler"):
            self._thread.butler = self._butlers()
        return self._thread.butler

    def get(self, tract: int, patch: int, band: str) -> Image:
        """The image of a patch; whatever the Butler raises where it has none."""
        key = (tract, patch, band)
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key]
        data_id = {"tract": tract, "patch": patch, "skymap": self._own.skymap, "band": band}
        found = self.butler.get(self._own.dataset_type, data_id, storageClass="Exposure").getImage()
        image = Image(np.asarray(found.getArray()), Box.of(found.getBBox()))
        with self._lock:
            self._images[key] = image
            while len(self._images) > self._own.cached_images:
                self._images.popitem(last=False)
        return image


@dataclass(frozen=True)
class _Place:
    """Where in the sky map an object lies."""

    tract: int
    patch: int
    box: Box
    patch_box: Box


class Lsst:
    """Rectangles around the objects of `download.catalog`, in each band; a file for each.

    Args:
        butlers: makes a Butler; those of `lsst.daf.butler` by default.
    """

    def __init__(self, butlers: Butlers | None = None) -> None:
        self._butlers = butlers

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Cut what is not there yet, patch by patch. A band that cannot be had becomes a plane of missing pixels; an
        object without any band has failed.

        Raises:
            MissingDependencyError: the packages of the Rubin Observatory are not installed.
            SettingsError: the repository, its collections or its sky map is not named, or cannot be had.
            DataError: the catalog cannot be used, or too much is missing.
        """
        own = settings.lsst
        for name in ("repo", "collections", "skymap"):
            if not getattr(own, name):
                raise SettingsError(f"{_SECTION}.{name}: the source 'lsst' needs it")
        objects, wanted, where = _listed(settings)
        transfers = Transfers(raw, wanted, own, _SECTION, lambda path, one: what_is_wrong(path, 0))
        missing = transfers.missing()
        if missing:
            images = Images(self._butlers or _butlers(own), own)
            skymap = _skymap(images, own)
            points = {one.object_id: where[one.object_id] for one in missing}
            places = {object_id: _place(skymap, *point, own) for object_id, point in points.items()}

            def ask(batch: Sequence[Wanted], traffic: Traffic) -> Iterator[tuple[Wanted, str | None]]:
                yield from _cut(batch, places, images, raw, own, traffic)

            transfers.run(_by_patch(missing, places), ask)
        else:
            transfers.run([], lambda batch, traffic: iter(()))
        transfers.require(by_object=True)
        objects, planes = _with_missing_planes(objects, transfers, raw)
        yield from transfers.entries(objects, FitsReading(bands=own.bands, normalise=own.normalise))
        yield from (ManifestEntry(name, _SECTION) for name in planes)

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        return cut_objects(settings, raw)

    def problems(self, settings: GalaxiesDownload) -> Iterator[str]:
        own = settings.lsst
        for name in ("repo", "collections", "skymap"):
            if not getattr(own, name):
                yield f"{_SECTION}.{name}: the source 'lsst' needs it; name it"
        for look in (lambda: _butlers(own), lambda: _listed(settings)):
            try:
                look()
            except (SettingsError, DataError, MissingDependencyError) as error:
                yield str(error)


def _butlers(own: LsstSettings) -> Butlers:
    try:
        import lsst.geom  # noqa: F401
        from lsst.daf.butler import Butler
    except ImportError as error:
        raise MissingDependencyError(
            f"the source 'lsst' needs lsst.daf.butler and lsst.geom ({error})",
            remedy="run on the Rubin Science Platform, or install the LSST Science Pipelines (https://pipelines.lsst.io)",
        ) from error
    return lambda: Butler(own.repo, collections=list(own.collections))


def _listed(settings: GalaxiesDownload) -> tuple[pl.DataFrame, list[Wanted], dict[str, tuple[float, float]]]:
    """The objects, a row for each band; what to cut; and ra, dec in degrees of each object."""
    own = settings.lsst
    columns = [own.ra_column, own.dec_column]
    table = read_targets(settings.catalog, columns, units=dict.fromkeys(columns, "deg"))
    twice = table.filter(pl.col("object_id").is_duplicated())
    if len(twice):
        raise DataError(f"object {twice['object_id'][0]!r} comes twice", place=settings.catalog.file)
    where, wanted = dict[str, tuple[float, float]](), []
    about = (own.repo, own.collections, own.skymap, own.dataset_type)
    sizes = (own.semi_width_arcsec, own.semi_height_arcsec, own.edge)
    for object_id, ra, dec in table.select("object_id", *columns).iter_rows():
        place = f"{settings.catalog.file}, object {object_id!r}"
        try:
            where[object_id] = x, y = float(ra), float(dec)
        except (TypeError, ValueError) as error:
            raise DataError(f"ra {ra!r}, dec {dec!r}", place=place, allowed="degrees") from error
        if not (-180 <= x <= 360 and -90 <= y <= 90):
            raise DataError(f"ra {x:g}, dec {y:g}", place=place, allowed="degrees, -180 <= ra <= 360, -90 <= dec <= 90")
        for band in own.bands:
            file = file_name(object_id, band, ".fits", *where[object_id], *about, *sizes)
            source = f"{own.repo} {own.dataset_type} {band} at {where[object_id][0]:.5f} {where[object_id][1]:+.5f}"
            wanted.append(Wanted(object_id, band, file, source))
    rows = np.repeat(np.arange(len(table)), len(own.bands))
    objects = table.drop("filter", "file", strict=False)[rows].with_columns(
        filter=pl.Series([one.filter for one in wanted]), file=pl.Series([one.file for one in wanted])
    )
    return objects, wanted, where


def _skymap(images: Images, own: LsstSettings) -> Any:
    """
    Raises:
        SettingsError: the repository cannot be opened, or has no such sky map.
    """
    try:
        butler = images.butler
    except Exception as error:  # a Butler passes on what its database and its storage raise
        raise SettingsError(
            f"{_SECTION}.repo: {own.repo!r} with the collections {', '.join(own.collections)} cannot be opened "
            f"({_reason(error)}); mend repo or collections, or see that you may read them"
        ) from error
    try:
        return butler.get("skyMap", {"skymap": own.skymap})
    except Exception as error:
        raise SettingsError(
            f"{_SECTION}.skymap: {own.skymap!r} cannot be had from {own.repo!r} ({_reason(error)}); name one that the "
            "collections hold"
        ) from error


def _place(skymap: Any, ra: float, dec: float, own: LsstSettings) -> _Place | str:
    """Where an object lies, or why it lies nowhere."""
    from lsst.geom import SpherePoint, degrees

    try:
        point = SpherePoint(ra, dec, degrees)
        tract = skymap.findTract(point)
        patch = tract.findPatch(point)
        box = box_on_sky(patch.getWcs(), ra, dec, own.semi_width_arcsec / 3600, own.semi_height_arcsec / 3600)
        return _Place(tract.getId(), patch.sequential_index, box, Box.of(patch.getOuterBBox()))
    except LookupError as error:
        return f"outside the sky map ({_reason(error)})"
    except Exception as error:  # of the projection, each with a type of its own
        return f"no place in the sky map ({_reason(error)})"


def box_on_sky(wcs: Any, ra: float, dec: float, semi_width: float, semi_height: float) -> Box:
    """The smallest box of whole pixels that holds two opposite corners of a rectangle on the sky.

    Args:
        wcs: with `skyToPixel` of a point of lsst.geom; pixel centres are whole numbers.
        ra, dec: the centre, degrees.
        semi_width: eastwards and westwards along a great circle, degrees.
        semi_height: northwards and southwards, degrees.
    """
    from lsst.geom import SpherePoint, degrees

    centre = SpherePoint(ra, dec, degrees)
    east, north, west, south = (bearing * degrees for bearing in (0.0, 90.0, 180.0, 270.0))
    width, height = semi_width * degrees, semi_height * degrees
    corners = [
        wcs.skyToPixel(centre.offset(east, width).offset(south, height)),
        wcs.skyToPixel(centre.offset(west, width).offset(north, height)),
    ]
    x, y = sorted(corner.getX() for corner in corners), sorted(corner.getY() for corner in corners)
    return Box(_first(x[0]), _first(y[0]), _last(x[1]) + 1, _last(y[1]) + 1)


def _first(coordinate: float) -> int:
    return math.floor(coordinate + 0.5)


def _last(coordinate: float) -> int:
    return math.ceil(coordinate - 0.5)


def _by_patch(missing: Sequence[Wanted], places: dict[str, _Place | str]) -> list[Sequence[Wanted]]:
    """All that is missing, in pieces of one patch, band by band within each; what lies nowhere comes first."""

    def patch(one: Wanted) -> tuple[int, int]:
        place = places[one.object_id]
        return (-1, -1) if isinstance(place, str) else (place.tract, place.patch)

    pieces = list[Sequence[Wanted]]()
    for _, group in groupby(sorted(missing, key=patch), patch):
        members = list(group)
        names = list(dict.fromkeys(one.object_id for one in members))
        for first in range(0, len(names), _TOGETHER):
            chosen = set(names[first : first + _TOGETHER])
            pieces.append(sorted((o for o in members if o.object_id in chosen), key=lambda o: (o.filter, o.object_id)))
    return pieces


def _cut(
    batch: Sequence[Wanted],
    places: dict[str, _Place | str],
    images: Images,
    raw: Path,
    own: LsstSettings,
    traffic: Traffic,
) -> Iterator[tuple[Wanted, str | None]]:
    """What `Ask` is asked. A data set that is not there never will be; anything else may pass."""
    trouble = dict[str, str]()
    for one in batch:
        traffic.count()
        place = places[one.object_id]
        if isinstance(place, str):
            yield one, place
            continue
        if min(place.box.shape) < 1:
            yield one, f"the cutout has no pixel ({place.box})"
            continue
        if own.edge == "error" and not place.patch_box.contains(place.box):
            yield one, f"the cutout ({place.box}) leaves tract {place.tract}, patch {place.patch} ({place.patch_box})"
            continue
        if one.filter in trouble:
            continue
        try:
            image = images.get(place.tract, place.patch, one.filter)
        except LookupError as error:
            yield one, _reason(error)
            continue
        except Exception as error:  # a Butler passes on what its database and its storage raise
            trouble[one.filter] = _reason(error)
            continue
        _write(raw / one.file, image.cut(place.box))
        yield one, None
    if trouble:
        raise UnansweredError("; ".join(f"{band}: {reason}" for band, reason in trouble.items()), gone=True)


def _reason(error: Exception) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _write(path: Path, pixels: np.ndarray) -> None:
    from astropy.io import fits

    with whole_file(path, sweep=False) as partial, partial.open("wb") as file:
        fits.PrimaryHDU(pixels).writeto(file)


def _with_missing_planes(objects: pl.DataFrame, transfers: Transfers, raw: Path) -> tuple[pl.DataFrame, list[str]]:
    """Where an object has some bands, a file of missing pixels in place of each of the others; and those files, of
    which there is one for each size."""
    shapes = dict[str, tuple[int, int]]()
    lacking = [one for one in transfers.wanted if not transfers.done(one)]
    names = {one.object_id for one in lacking}
    for one in transfers.wanted:
        if one.object_id in names and one.object_id not in shapes and transfers.done(one):
            shapes[one.object_id] = read_planes(raw / one.file).shape[1:]
    planes, instead = set[str](), dict[str, str]()
    for one in lacking:
        if one.object_id in shapes:
            height, width = shapes[one.object_id]
            instead[one.file] = f"missing_{height}x{width}.fits"
            if instead[one.file] not in planes:
                planes.add(instead[one.file])
                _write(raw / instead[one.file], np.full((height, width), np.nan, np.float32))
    if instead:
        logger.warning("%d bands of %d objects are missing; their pixels are", len(instead), len(shapes))
    return objects.with_columns(pl.col("file").replace(instead)), sorted(planes)
