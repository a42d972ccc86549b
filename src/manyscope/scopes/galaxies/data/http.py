"""Images at addresses that the catalog names, each fetched whole and checked."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import polars as pl

from manyscope.data.fetching import BrokenConnectionError, FetchError, RefusedFileError, Traffic, fetch
from manyscope.errors import DataError, SettingsError
from manyscope.scopes.galaxies.addresses import what_is_wrong_with, without_query
from manyscope.scopes.galaxies.data.catalog import read_targets
from manyscope.scopes.galaxies.data.fits import cut_objects
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.transfers import (
    Transfers,
    UnansweredError,
    Wanted,
    file_name,
    what_is_wrong,
)
from manyscope.tables.manifest import ManifestEntry

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import CatalogSettings, GalaxiesDownload, GalaxiesPreprocess

_SECTION = "download.http"
_SUFFIXES = (".fits.gz", ".fits.fz", ".fits", ".npy")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Http:
    """The column `url` of `download.catalog`, with `sha256` and `filter` where the catalog has them."""

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Fetch what is not there yet, `download.http.threads` files at a time.

        Raises:
            DataError: the catalog cannot be used, or too much is missing.
        """
        own, (objects, wanted, addresses) = settings.http, _listed(settings.catalog)
        transfers = Transfers(raw, wanted, own, _SECTION, lambda path, one: what_is_wrong(path, own.hdu))

        def ask(batch: Sequence[Wanted], traffic: Traffic) -> Iterator[tuple[Wanted, str | None]]:
            for one in batch:
                target = raw / one.file
                try:
                    checksum = one.checksum and f"sha256:{one.checksum}"
                    fetch(addresses[one.file], target, checksum, traffic=traffic, waits_s=transfers.waits_s())
                except RefusedFileError as error:
                    yield one, str(error.__cause__)
                    continue
                except FetchError as error:
                    cause = error.__cause__
                    gone = isinstance(cause, BrokenConnectionError) and not cause.able
                    raise UnansweredError(str(cause), last=True, gone=gone) from error
                wrong = transfers.wrong(target, one)
                if wrong:
                    target.unlink()
                    raise UnansweredError(wrong)
                yield one, None

        transfers.run([[one] for one in transfers.missing()], ask)
        transfers.require()
        yield from transfers.entries(objects, own)

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        return cut_objects(settings, raw)

    def problems(self, settings: GalaxiesDownload) -> Iterator[str]:
        try:
            _listed(settings.catalog)
        except (SettingsError, DataError) as error:
            yield str(error)


def _listed(catalog: CatalogSettings) -> tuple[pl.DataFrame, list[Wanted], dict[str, str]]:
    """The objects, a row for each file; what to fetch; and the address of each file, whose query stands in no table.

    Raises:
        DataError: an address is not one of HTTP, or a checksum is no SHA-256.
    """
    table = read_targets(catalog, ["url"], ["filter", "sha256"])
    wanted, addresses = list[Wanted](), dict[str, str]()
    for object_id, address, band, checksum in table.select("object_id", "url", "filter", "sha256").iter_rows():
        place = f"{catalog.file}, object {object_id!r}"
        address = quote(str(address).strip(), safe=string.punctuation)
        wrong = what_is_wrong_with(address)
        if wrong:
            raise DataError(f"url {wrong}", place=place, allowed="addresses of http and https without a password")
        checksum = None if checksum is None else str(checksum).strip().lower().removeprefix("sha256:")
        if checksum is not None and not _SHA256.fullmatch(checksum):
            raise DataError(f"sha256 {checksum!r}", place=place, allowed="64 hexadecimal digits, or nothing")
        path = urlsplit(address).path.lower()
        suffix = next((known for known in _SUFFIXES if path.endswith(known)), ".fits")
        band = "" if band is None else str(band).strip()
        file = file_name(object_id, band or "image", suffix, address, checksum)
        addresses[file] = address
        wanted.append(Wanted(object_id, band, file, without_query(address), checksum))
    bands = [one.filter or None for one in wanted]
    objects = table.drop("url", "sha256", "filter").with_columns(
        filter=pl.Series(bands, dtype=pl.String), file=pl.Series([one.file for one in wanted], dtype=pl.String)
    )
    return objects, wanted, addresses
