"""Cutouts of the Hyper Suprime-Cam survey, from its cutout service.

Hundreds of rectangles go into one request; the answer is a tar that is unpacked while it comes. The form of both:
https://hsc-release.mtk.nao.ac.jp/das_cutout/pdr3/manual.html
"""

from __future__ import annotations

import base64
import http.client
import os
import re
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import polars as pl

from manyscope.data.fetching import PASSING, BrokenConnectionError, Traffic, asked_wait_s, blocks
from manyscope.data.linking import absolute
from manyscope.errors import DataError, SettingsError
from manyscope.scopes.galaxies.addresses import shown
from manyscope.scopes.galaxies.data.catalog import read_targets
from manyscope.scopes.galaxies.data.fits import cut_objects, strict_warnings
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.transfers import (
    Check,
    Doubt,
    RefusedError,
    Transfers,
    UnansweredError,
    Wanted,
    file_name,
    what_is_wrong,
)
from manyscope.tables.manifest import ManifestEntry, file_digest
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import GalaxiesDownload, GalaxiesPreprocess, HscSettings

_SECTION = "download.hsc"
USERNAME, PASSWORD = "MANYSCOPE_HSC_USERNAME", "MANYSCOPE_HSC_PASSWORD"
FIELDS = ("rerun", "type", "filter", "tract", "ra", "dec", "sw", "sh", "image", "mask", "variance")
_FIRST_LINE = 2  # of a rectangle in the list: the first line names the fields
_OVERRIDES = ("semi_width_arcsec", "semi_height_arcsec", "filter", "type", "rerun")
_UNITS = {"ra": "deg", "dec": "deg", "semi_width_arcsec": "arcsec", "semi_height_arcsec": "arcsec"}
_TYPES = {"coadd": "cutout", "coadd/bg": "coadd+bg"}
_MEMBER = re.compile(
    r"(?:[\w-]+/)?(?P<line>\d{1,6})-(?P<type>cutout|coadd\+bg)-(?P<filter>[^/]+)-(?P<tract>\d+)-(?P<rerun>[^/]+)\.fits"
)
_WORD = re.compile(r"[A-Za-z0-9_.+-]+")
_LARGEST = 2**28  # bytes of one cutout
_BOUNDARY = "manyscope-9c1f5a6f2e"
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_BLOCK = 2**16


@dataclass(frozen=True, slots=True)
class Rectangle:
    """One cutout in one filter; angles in degrees, `sw` and `sh` from the centre to the edges."""

    rerun: str
    type: str
    filter: str
    tract: str
    ra: float
    dec: float
    sw: float
    sh: float
    image: bool
    mask: bool
    variance: bool

    def line(self) -> str:
        """As the service reads it, in the order of FIELDS."""
        texts = []
        for name in FIELDS:
            value = getattr(self, name)
            if isinstance(value, bool):
                texts.append("true" if value else "false")
            else:
                texts.append(f"{value!r}deg" if isinstance(value, float) else value)
        return " ".join(texts)

    @property
    def identity(self) -> tuple[object, ...]:
        """All that the pixels depend on; the tract is where the service looks first."""
        return tuple(getattr(self, name) for name in FIELDS)


class Hsc:
    """Rectangles around the objects of `download.catalog`, in each of the filters."""

    def download(self, settings: GalaxiesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Ask for what is not there yet, sorted so that the service finds neighbours in its cache.

        Raises:
            SettingsError: no credentials, or two.
            DataError: the catalog cannot be used, the service refuses the credentials, or too much is missing.
        """
        own = settings.hsc
        objects, rectangles = _listed(settings)
        transfers = Transfers(
            raw, list(rectangles), own, _SECTION, lambda path, one: is_not(path, own, rectangles[one])
        )
        missing = sorted(transfers.missing(), key=lambda one: _order(rectangles[one], one))
        if missing:
            transfers.run(batches(missing, own.threads, own.rectangles), Service(own, raw, rectangles, transfers.wrong))
        else:
            transfers.run([], _nobody)
        transfers.require()
        yield from transfers.entries(objects, own)

    def cut(self, settings: GalaxiesPreprocess, raw: Path, manifest: pl.DataFrame) -> Cutouts:
        return cut_objects(settings, raw)

    def problems(self, settings: GalaxiesDownload) -> Iterator[str]:
        for look in (lambda: credentials(settings.hsc), lambda: _listed(settings)):
            try:
                look()
            except (SettingsError, DataError) as error:
                yield str(error)


def _nobody(batch: Sequence[Wanted], traffic: Traffic) -> Iterator[tuple[Wanted, str | None]]:
    yield from ()


def batches(wanted: Sequence[Wanted], threads: int, most: int) -> list[Sequence[Wanted]]:
    """All of them in pieces of at most `most`, and for every thread one if there are enough; nothing is left over."""
    size = max(1, min(most, -(-len(wanted) // threads)))
    return [wanted[first : first + size] for first in range(0, len(wanted), size)]


def _order(rectangle: Rectangle, one: Wanted) -> tuple[object, ...]:
    tract = int(rectangle.tract) if rectangle.tract.isdecimal() else -1
    return (tract, rectangle.ra, rectangle.dec, one.object_id, rectangle.filter)


def _listed(settings: GalaxiesDownload) -> tuple[pl.DataFrame, dict[Wanted, Rectangle]]:
    """The objects, a row for each file, and what to ask for.

    Raises:
        DataError: a value of the catalog is none that the service can understand.
    """
    own = settings.hsc
    table = read_targets(settings.catalog, ["ra", "dec"], ["tract", *_OVERRIDES], _UNITS)
    rectangles, rows = dict[Wanted, Rectangle](), []
    several = table["object_id"].is_duplicated().to_list()
    for row, values in enumerate(table.iter_rows(named=True)):
        place = f"{settings.catalog.file}, object {values['object_id']!r}"
        if several[row] and values["filter"] is None:
            raise DataError("the object comes twice without a filter", place=place, remedy="leave one row")
        bands = own.filters if values["filter"] is None else tuple(re.split(r"[,\s]+", str(values["filter"]).strip()))
        for band in bands:
            rectangle = _rectangle(values, band, own, place)
            kind = (
                f"{rectangle.type.replace('/', '+')}_{rectangle.ra:.5f}_{rectangle.dec:+.5f}_{rectangle.tract}_{band}"
            )
            file = file_name(values["object_id"], kind, ".fits", *rectangle.identity)
            wanted = Wanted(values["object_id"], band, file, f"{own.api} {rectangle.line()}")
            rectangles[wanted] = rectangle
            rows.append((row, band, file))
    at, filters, files = zip(*rows, strict=True)
    kept = table.drop("filter", *(n for n in ("tract", *_OVERRIDES[:2], *_OVERRIDES[3:]) if table[n].dtype == pl.Null))
    objects = kept[list(at)].with_columns(
        filter=pl.Series(filters, dtype=pl.String), file=pl.Series(files, dtype=pl.String)
    )
    return objects, rectangles


def _rectangle(values: dict[str, Any], band: str, own: HscSettings, place: str) -> Rectangle:
    def of(name: str) -> Any:
        return getattr(own, name) if values[name] is None else values[name]

    numbers = {}
    for name, value in (
        ("ra", values["ra"]), ("dec", values["dec"]),
        ("semi_width_arcsec", of("semi_width_arcsec")), ("semi_height_arcsec", of("semi_height_arcsec")),
    ):  # fmt: skip
        try:
            numbers[name] = float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{name} {value!r}", place=place, allowed="a number") from error
    ra, dec, width, height = numbers.values()
    if not (0 <= ra < 360 and -90 <= dec <= 90):
        raise DataError(f"ra {ra:g}, dec {dec:g}", place=place, allowed="degrees, 0 <= ra < 360, -90 <= dec <= 90")
    if not (0 < width < 3600 and 0 < height < 3600):
        raise DataError(f"a cutout of {width:g} x {height:g} arcsec", place=place, allowed="more than 0, below 3600")
    kind, rerun = str(of("type")).strip().lower(), str(of("rerun")).strip()
    if kind not in _TYPES:
        raise DataError(f"type {kind!r}", place=place, allowed=", ".join(_TYPES))
    for name, word in (("filter", band), ("rerun", rerun)):
        if not _WORD.fullmatch(word):
            raise DataError(f"{name} {word!r}", place=place, allowed="letters, digits and _ . + -")
    tract = _tract(values["tract"], place)
    return Rectangle(rerun, kind, band, tract, ra, dec, width / 3600, height / 3600, True, own.mask, own.variance)


def _tract(value: Any, place: str) -> str:
    """As the service reads it: "any" where the catalog names none, be it null, not a number, or that word."""
    if value is None or value != value or str(value).strip().lower() in ("", "any"):
        return "any"
    try:
        number = int(value)
        whole = number >= 0 and not (isinstance(value, float) and number != value)
    except (TypeError, ValueError, OverflowError):
        whole = False
    if not whole:
        raise DataError(f"tract {value!r}", place=place, allowed="a whole number, any, or nothing")
    return str(number)


def credentials(own: HscSettings) -> tuple[str, str]:
    """Username and password, from the environment or from the file.

    Raises:
        SettingsError: neither or both are given.
        DataError: the file does not hold them.
    """
    username, password = os.environ.get(USERNAME), os.environ.get(PASSWORD)
    if own.credentials is None:
        if username and password:
            return username, password
        raise SettingsError(
            f"{_SECTION}: no credentials; set {USERNAME} and {PASSWORD} in the environment, or {_SECTION}.credentials "
            "to a TOML file with username and password"
        )
    if username or password:
        raise SettingsError(
            f"{_SECTION}.credentials: there are credentials in the environment too; unset {USERNAME} and {PASSWORD}, "
            "or set this to null"
        )
    path = absolute(own.credentials)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # The reason could quote the file.
        raise DataError(
            f"cannot be read as TOML ({type(error).__name__})", place=path, remedy=f"mend {_SECTION}.credentials"
        ) from None
    found = values.get("username"), values.get("password")
    if not (isinstance(found[0], str) and isinstance(found[1], str) and all(found)):
        raise DataError("no credentials", place=path, allowed='username = "…" and password = "…"')
    return found[0], found[1]


def is_not(path: Path, own: HscSettings, rectangle: Rectangle) -> str | None:
    """Why a file is not the whole cutout of this rectangle, or None; its header says where on the sky it is. A Doubt
    as of `what_is_wrong`."""
    from astropy.io import fits
    from astropy.wcs import WCS

    wrong = what_is_wrong(path, own.hdu)
    if wrong and not isinstance(wrong, Doubt):
        return wrong
    first = own.hdu[0] if isinstance(own.hdu, tuple) else own.hdu
    try:
        header = fits.getheader(path, 1 if first is None else first)
        if "CRVAL1" not in header:
            return wrong
        with strict_warnings():
            x, y = WCS(header).celestial.world_to_pixel_values(rectangle.ra, rectangle.dec)
        there = -1 <= x <= header["NAXIS1"] and -1 <= y <= header["NAXIS2"]
    except Exception as error:  # astropy and wcslib raise a dozen types for what a header can hold
        return f"its header has no usable place on the sky ({type(error).__name__})"
    return wrong if there else "a cutout of another place"


class Service:
    """Asks for batches of rectangles.

    Args:
        rectangles: of everything that may be wanted.
        check: what is wrong with a file.

    Raises:
        SettingsError, DataError: see `credentials`.
    """

    def __init__(self, own: HscSettings, raw: Path, rectangles: dict[Wanted, Rectangle], check: Check) -> None:
        self._own, self._raw, self._rectangles, self._check = own, raw, rectangles, check
        secret = base64.b64encode(":".join(credentials(own)).encode()).decode()
        self._authorization = f"Basic {secret}"
        self._address = f"{own.api.rstrip('/')}/cgi-bin/cutout"
        self._opener = urllib.request.build_opener(_StayHere)

    def __call__(self, batch: Sequence[Wanted], traffic: Traffic) -> Iterator[tuple[Wanted, str | None]]:
        body = form([self._rectangles[one] for one in batch])
        traffic.count(requests=1, bytes_out=len(body))
        arrived = dict[int, str]()
        trouble: UnansweredError | None = None
        since = time.monotonic()
        try:
            with self._post(body) as response:
                traffic.count(request_s=time.monotonic() - since)
                self._unpack(response, batch, arrived, traffic)
        except UnansweredError as error:
            trouble = error
        except (BrokenConnectionError, tarfile.TarError, OSError, http.client.HTTPException) as error:
            trouble = UnansweredError(str(error) or type(error).__name__, gone=isinstance(error, OSError))
        for line in sorted(arrived):
            yield batch[line], None
        if trouble:
            raise trouble

    def _post(self, body: bytes) -> http.client.HTTPResponse:
        """
        Raises:
            UnansweredError: another try may help.
            RefusedError: the service does not take this request.
            DataError: the service does not take the credentials, or sends them elsewhere.
        """
        address = self._address
        for _ in range(_MOST_REDIRECTS + 1):
            request = urllib.request.Request(
                address,
                data=body,
                headers={
                    "User-Agent": "manyscope",
                    "Accept-Encoding": "identity",
                    "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
                },
                method="POST",
            )
            request.add_unredirected_header("Authorization", self._authorization)
            try:
                response: http.client.HTTPResponse = self._opener.open(request, timeout=self._own.timeout_s)
                return response
            except urllib.error.HTTPError as error:
                with error:
                    address = self._elsewhere(address, error)
        raise UnansweredError(f"more than {_MOST_REDIRECTS} redirects")

    def _elsewhere(self, address: str, error: urllib.error.HTTPError) -> str:
        """The address to go on with."""
        found = f"HTTP {error.code} {error.reason}"
        if error.code in (401, 403):
            raise DataError(
                f"the service refuses the credentials ({found})",
                place=self._address,
                remedy=f"check {USERNAME} and {PASSWORD}, or {_SECTION}.credentials",
            ) from error
        if error.code in _REDIRECTS and error.headers.get("Location"):
            try:
                target = urljoin(address, error.headers["Location"])
                stays = urlsplit(target)[:2] == urlsplit(self._address)[:2]
            except ValueError:
                raise RefusedError(f"{found}, to what is no address") from error
            if stays:
                return target
            raise DataError(
                f"the service has moved to {shown(target)}; credentials are not sent there unasked",
                place=self._address,
                remedy=f"set {_SECTION}.api if that is right",
            ) from error
        if error.code in PASSING:
            gone = error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
            raise UnansweredError(found, asked_wait_s(error.headers), gone=gone) from error
        if error.code in (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.METHOD_NOT_ALLOWED):
            raise DataError(
                f"there is no cutout service ({found})", place=shown(address), remedy=f"check {_SECTION}.api"
            ) from error
        raise RefusedError(found) from error

    def _unpack(
        self, response: http.client.HTTPResponse, batch: Sequence[Wanted], arrived: dict[int, str], traffic: Traffic
    ) -> None:
        """Put the members of the tar that belong to the batch in their places; `arrived` gets their positions in the
        batch with the digests of the files.

        Raises:
            UnansweredError: something in it cannot be used; what came before can.
        """
        if "html" in response.headers.get("Content-Type", ""):
            raise UnansweredError("a page of HTML came instead of a tar")
        doubtful, strange = set[int](), list[str]()
        with tarfile.open(fileobj=_Reader(response, traffic, self._own.timeout_s), mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                if member.isdir():
                    continue
                number = self._number(member, batch)
                content = tar.extractfile(member) if number is not None and number not in doubtful else None
                if number is None or content is None:
                    strange.append(member.name)
                    continue
                try:
                    digest = self._place(content, member.size, batch[number], arrived.get(number))
                except _NotTheSameError:
                    # Nobody can tell which of the two is right.
                    doubtful.add(number)
                    del arrived[number]
                    (self._raw / batch[number].file).unlink()
                    strange.append(member.name)
                except _WrongError as error:
                    strange.append(f"{member.name}: {error}")
                else:
                    arrived[number] = digest
        if strange:
            raise UnansweredError(f"{len(strange)} members of the answer cannot be used, the first: {strange[0]!r}")

    def _number(self, member: tarfile.TarInfo, batch: Sequence[Wanted]) -> int | None:
        """The position in the batch of the rectangle that a member says it is of; None if it is of none."""
        match = _MEMBER.fullmatch(member.name)
        if match is None or not member.isreg() or not 0 < member.size <= _LARGEST:
            return None
        number = int(match["line"]) - _FIRST_LINE
        if not 0 <= number < len(batch):
            return None
        asked = self._rectangles[batch[number]]
        said = match["type"], match["filter"], match["rerun"]
        if said != (_TYPES[asked.type], asked.filter, asked.rerun) or asked.tract not in ("any", match["tract"]):
            return None
        return number

    def _place(self, content: IO[bytes], size: int, one: Wanted, before: str | None) -> str:
        """Write the file of a member; its digest.

        Args:
            before: digest of what the same answer has had for this rectangle already.
        """
        target = self._raw / one.file
        with whole_file(target, sweep=False) as partial:
            with partial.open("wb") as file:
                while block := content.read(_BLOCK):
                    file.write(block)
            if partial.stat().st_size != size:
                raise BrokenConnectionError(f"the answer ended within {target.name}")
            digest = file_digest(partial)
            if before not in (None, digest):
                raise _NotTheSameError
            wrong = self._check(partial, one)
            if wrong:
                raise _WrongError(wrong)
        return digest


class _WrongError(Exception):
    """A member is not what it says."""


class _NotTheSameError(Exception):
    """Two members with the same line number differ."""


class _StayHere(urllib.request.HTTPRedirectHandler):
    """Redirects are errors: followed blindly they would lose the list, and carry the password elsewhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Reader:
    """An answer as a file of which tarfile reads, counted."""

    def __init__(self, response: http.client.HTTPResponse, traffic: Traffic, timeout_s: float) -> None:
        self._blocks, self._traffic, self._rest = blocks(response, timeout_s), traffic, b""

    def read(self, size: int) -> bytes:
        if not self._rest:
            since = time.monotonic()
            self._rest = next(self._blocks, b"")
            self._traffic.count(bytes_in=len(self._rest), response_s=time.monotonic() - since)
        block, self._rest = self._rest[:size], self._rest[size:]
        return block


def form(rectangles: Sequence[Rectangle]) -> bytes:
    """The body of a request: a form with one file, a line for each rectangle."""
    listed = "\n".join([f"#? {' '.join(FIELDS)}", *(one.line() for one in rectangles)])
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="list"; filename="list.txt"\r\n\r\n'
    return f"{head}{listed}\r\n--{_BOUNDARY}--\r\n".encode()
