"""Pretrained weights of micro_sam: fetched by the download stage, opened without a network by every other."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from manyscope.data.weights import MANIFEST, REMEDY, Known, check, fill, read_manifest
from manyscope.errors import CheckpointError, DataError, MissingDependencyError, did_you_mean

if TYPE_CHECKING:
    from manyscope.scopes.cells.settings import WeightsSettings

# As in micro_sam 1.8, which takes seconds to import.
NAMES = (
    "vit_b", "vit_b_em_organelles", "vit_b_histopathology", "vit_b_lm", "vit_b_medical_imaging",
    "vit_h", "vit_h_histopathology",
    "vit_l", "vit_l_em_organelles", "vit_l_histopathology", "vit_l_lm",
    "vit_t", "vit_t_em_organelles", "vit_t_lm",
)  # fmt: skip
WITHOUT_DECODER = ("vit_b", "vit_h", "vit_l", "vit_t")  # the original models of Segment Anything


@dataclass(frozen=True)
class Weights:
    """Files of one pretrained model.

    Attributes:
        checkpoint: the promptable model; a file of one's own may hold a decoder as well.
        decoder: None where micro_sam has none, or the checkpoint is a file of one's own.
    """

    checkpoint: Path
    decoder: Path | None = None


def fetch(names: Sequence[str], folder: Path) -> list[Weights]:
    """Bring models of micro_sam's registry into the folder: found there, in micro_sam's cache, or fetched.

    Raises:
        DataError: a name is unknown, a file cannot be had, or the folder cannot be written.
        MissingDependencyError: something must be fetched and micro_sam is not installed.
        BusyError: another process has been filling the folder for an hour.
    """
    for name in names:
        if name not in NAMES:
            raise _unknown(name)
    folder = folder.expanduser()
    fill(folder, [file for name in names for file in _files(name)], registry)
    return [_weights([folder / file for file in _files(name)]) for name in names]


def require(place: Path, name: str) -> Weights:
    """Weights that are there and unchanged, without a look at the registry or the network.

    Args:
        place: a folder that `fetch` filled, or a file of one's own, which is taken as it is.
        name: of the model in the folder; a file has no need of it.

    Raises:
        CheckpointError: a file is missing, cut short, or not what was fetched.
        DataError: the folder's manifest cannot be read.
    """
    folder, name = _located(place, name)
    if not name:
        return Weights(folder)
    if not folder.is_dir():
        raise CheckpointError("no such file or folder", place=folder, remedy=f"mend model.weights, or {REMEDY}")
    return _weights([check(folder, file) for file in _files(name)])


def registry() -> Mapping[str, Known]:
    """micro_sam's registry: address, checksum and place in its cache of every file. Fetches nothing.

    Raises:
        MissingDependencyError: micro_sam is not installed.
    """
    try:
        from micro_sam.util import models
    except ImportError as error:
        raise MissingDependencyError(
            f"micro_sam, which knows where weights are, cannot be imported ({error})",
            place="download.weights",
            remedy="pip install 'manyscope[cells]'",
        ) from error
    known = models()
    return {
        name: Known(known.get_url(name), checksum, (Path(known.abspath).expanduser() / name,))
        for name, checksum in known.registry.items()
    }


def problems(settings: WeightsSettings, model: str, place: Path | None) -> Iterator[str]:
    """What `manyscope validate` can say of the weights before any is fetched or read.

    Args:
        model: `model.name`.
        place: `model.weights`.
    """
    folder = settings.folder.expanduser()
    for name in settings.names:
        if name not in NAMES:
            yield str(_unknown(name))
    tiny = sorted({name for name in (model, *settings.names) if name in NAMES and name.startswith("vit_t")})
    if tiny and importlib.util.find_spec("mobile_sam") is None:
        yield (
            f"{'model.name' if model in tiny else 'download.weights.names'}: {tiny[0]} needs the package mobile_sam;"
            " run: pip install git+https://github.com/ChaoningZhang/MobileSAM.git, or take a vit_b"
        )
    if folder.exists() and not folder.is_dir():
        yield f"download.weights.folder: {folder} is no folder; mend the path"
    if place is not None:
        yield from _place_problems(settings, model, place)


def _place_problems(settings: WeightsSettings, model: str, place: Path) -> Iterator[str]:
    fetched, here = settings.folder.expanduser().resolve(), place.expanduser().resolve()
    if (here == fetched and model in settings.names) or any(here == fetched / name for name in settings.names):
        return  # the download stage puts it there, or mends it
    remedy = "give a file of weights of this model"
    if model in NAMES:
        there = "" if here == fetched else f" with download.weights.folder: {place}"
        remedy = f"add {model} to download.weights.names{there}, or give a file"
    try:
        folder, name = _located(place, model)
        if name and not folder.is_dir():
            yield f"model.weights: no file or folder {folder}; mend the path, or {remedy}"
        elif name:
            for file in _files(name):
                check(folder, file, contents=False)
    except (CheckpointError, DataError) as error:
        yield f"model.weights: {error.place}: {error.found}; {remedy}"


def _located(place: Path, name: str) -> tuple[Path, str]:
    """The folder and the name in its manifest; without a name, a file of one's own.

    A file that was fetched is the same as its name in its folder, so that it does not lose its decoder.
    """
    place = place.expanduser()
    if not place.is_file():
        return place, name
    listed = (place.parent / MANIFEST).is_file() and place.name in read_manifest(place.parent)
    return (place.parent, place.name) if listed else (place, "")


def _files(name: str) -> list[str]:
    return [name, f"{name}_decoder"] if name in NAMES and name not in WITHOUT_DECODER else [name]


def _weights(files: Sequence[Path]) -> Weights:
    return Weights(files[0], files[1] if len(files) > 1 else None)


def _unknown(name: str) -> DataError:
    return DataError(
        f"{name!r} is no model of micro_sam's registry",
        place="download.weights.names",
        allowed=", ".join(NAMES),
        remedy=did_you_mean(name, list(NAMES)),
    )
