"""Searching by an image file of the user's: made a stamp like those of the data set, and embedded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.errors import DataError
from manyscope.scopes.galaxies.data.fits import less_sky, placed, read_planes
from manyscope.scopes.galaxies.data.hubble import read_photograph
from manyscope.scopes.galaxies.data.prepare import fill_missing
from manyscope.scopes.galaxies.data.sources import middle
from manyscope.scopes.galaxies.data.stamps import FEATURE, GREY_LEVELS, SKY_RMS
from manyscope.scopes.galaxies.settings import GalaxiesPreprocess
from manyscope.tables.arrays import map_array

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.data.stamps import StampData
    from manyscope.scopes.galaxies.settings import GalaxiesModel

_FITS = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz", ".fz", ".fits.bz2")


def embed_image(settings: GalaxiesModel, data: StampData, weights: Path, query: Path | str) -> np.ndarray:
    """The latent vector, (dimensions,) float32, of the middle of a photograph, a FITS file or an array.

    Raises:
        DataError: the file is missing, unreadable, smaller than a stamp, or of another number of bands than the data.
        CheckpointError: the weights are of another model.
    """
    import torch

    from manyscope.scopes.galaxies.model import build_model, outputs
    from manyscope.training.checkpoints import load_weights

    stamp = query_stamp(data, Path(query))
    model = build_model(settings, data)
    load_weights(weights, model, "galaxies", settings.model_dump(mode="json"))
    with torch.inference_mode():
        images = data.transforms(torch.from_numpy(stamp)[None])
        latent: np.ndarray = outputs(model.eval(), images)["latent"][0].float().numpy()
    return latent


def query_stamp(data: StampData, path: Path) -> np.ndarray:
    """The middle of a photograph, of a FITS file or of an array (.npy), prepared as the data were.

    Where the data are in rms of the sky, sky and noise are estimated from the border: of the whole image in a FITS
    file or an array, which are cutouts; of the stamp in a photograph, whose own border may lie far away. An image
    smaller than a stamp is padded if the data were. Features are an array of as many numbers.

    Returns:
        (bands, stamp_px, stamp_px) float32, in the unit of the data.

    Raises:
        DataError: the file is missing, unreadable, smaller than a stamp though the data may not be padded, has another
            number of bands than the data or missing pixels where the data may have none, or is a photograph, for which
            the unit of the data has no meaning.
    """
    bands, size = data.stamps.shape[1], data.stamps.shape[-1]
    cutout, image = _read(data, path)
    if len(image) != bands:
        raise DataError(f"the image has {len(image)} bands", place=path, allowed=f"{bands} as the data")
    policy = GalaxiesPreprocess(
        **{name: data.meta[name] for name in ("edge", "pad_value", "nan_policy", "nan_quantile")}
    )
    small = min(image.shape[1:]) < size
    if not cutout and not (small and policy.edge == "pad"):
        image = middle(image, size, path)
    if data.unit == SKY_RMS:
        image = less_sky(image)
    elif data.unit == GREY_LEVELS and not cutout:
        image = image / 127.5 - 1
    if policy.edge == "error":
        stamp = middle(image, size, path)
    else:
        stamp, _ = placed(image, size, np.nan if policy.pad_value is None else policy.pad_value)
    filled, _ = fill_missing(stamp[None].astype(np.float32), policy, [path.name], path)
    return np.ascontiguousarray(filled[0])


def _read(data: StampData, path: Path) -> tuple[bool, np.ndarray]:
    """Whether the file is a cutout with its own border of sky, and (bands, height, width), rows in the order of the
    data: FITS images begin at the bottom, photographs at the top, arrays as the data do."""
    name = path.name.lower()
    if name.endswith(".npy"):
        image = map_array(path, remedy="write it by numpy.save")
        if image.ndim == 1 and data.unit == FEATURE:
            image = image[:, None, None]
        if image.ndim not in (2, 3) or image.dtype.kind not in "iuf":
            raise DataError(
                f"the array has shape {image.shape} and type {image.dtype}",
                place=path,
                allowed="(bands, height, width) or (height, width) of numbers",
            )
        return True, image.reshape(-1, *image.shape[-2:])
    if data.unit == FEATURE:
        raise DataError("features are no image", place=path, allowed=f"a .npy of {data.stamps.shape[1]} numbers")
    if name.endswith(_FITS):
        planes = read_planes(path, data.meta["source"].get("hdu"))
        return True, planes[:, ::-1] if data.top_down else planes
    if data.unit not in (SKY_RMS, GREY_LEVELS):
        raise DataError(
            f"a photograph has no values in the unit of the data, {data.unit!r}",
            place=path,
            allowed="a FITS file or an array (.npy) in this unit",
        )
    photograph = read_photograph(path)
    return False, photograph if data.top_down else photograph[:, ::-1]
