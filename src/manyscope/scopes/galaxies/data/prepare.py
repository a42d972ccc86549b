"""From cutouts to prepared files: splits that share no pixel, missing pixels, one memory-mapped array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from manyscope.data.splits import split_by_hash, unit_hash
from manyscope.errors import DataError, did_you_mean
from manyscope.log import logger, progress
from manyscope.scopes.galaxies.data.pruning import check_pruned, report_pruned
from manyscope.scopes.galaxies.data.sources import Cutouts
from manyscope.scopes.galaxies.data.stamps import META, STAMPS
from manyscope.scopes.galaxies.data.transforms import Transforms
from manyscope.tables.whole import reserve, whole_file, write_json

if TYPE_CHECKING:
    from manyscope.scopes.galaxies.settings import GalaxiesPreprocess

_USUAL_LABEL = "class"  # need not be there
_CHECKED_AT_ONCE = 64


def prepare(cutouts: Cutouts, settings: GalaxiesPreprocess, raw: Path, prepared: Path) -> pl.DataFrame:
    """Write `stamps.npy`, (samples, bands, size_px, size_px) float32, `stamps.json`, and `pruned.csv` if the source can
    leave objects out.

    Returns:
        The samples, a row for each stamp in the same order, with the column `missing_fraction` added.

    Raises:
        DataError: there are no stamps, one has another shape or is not float32, too many objects are left out, pixels
            are missing and the policy is 'error', there is no column `preprocess.label`, or a transform makes values
            that are not finite.
        SettingsError, ManyscopeError: a transform is unknown or does not take its arguments.
    """
    import torch

    table = cutouts.table
    if cutouts.pruned is not None:
        objects = len(table) + len(cutouts.pruned)
        check_pruned(cutouts.pruned, objects, settings.pruned_max, raw)
        report_pruned(cutouts.pruned, objects, prepared)
    if table.is_empty():
        raise DataError("the data set is empty", place=raw, remedy="check section 'download' and the source's filters")
    classes = class_names(table, settings.label, raw)
    bands, size = len(cutouts.bands), cutouts.size_px or settings.stamp_px
    shape = (bands, size, size)
    transforms = Transforms(step.model_dump(mode="json") for step in settings.transforms)
    images = transforms(torch.zeros(1, *shape))  # a wrong step fails here, before an hour of writing

    split = deal(table["group"].to_list(), cutouts.every_group, settings)
    keep = np.ones(len(table), bool) if cutouts.centre_px is None else shares_no_pixel(cutouts.centre_px, split, size)
    if not keep.all():
        logger.info("left out %d stamps that share pixels with another split", (~keep).sum())
    ids = table["sample_id"].to_list()
    missing = np.zeros(len(table), np.float32)
    first = row = 0
    with whole_file(prepared / STAMPS) as partial:
        stored = np.lib.format.open_memmap(partial, "w+", np.float32, (int(keep.sum()), *shape))
        reserve(partial)
        for chunk in progress(cutouts.chunks, "stamps"):
            if chunk.dtype != np.float32 or chunk.shape[1:] != shape:
                raise DataError(
                    f"stamps have shape {chunk.shape[1:]} and type {chunk.dtype}",
                    place=raw,
                    allowed=f"{shape}, float32",
                )
            if first + len(chunk) > len(table):
                raise _other_count(f"at least {first + len(chunk)}", table, raw)
            here = slice(first, first + len(chunk))
            filled, missing[here] = fill_missing(chunk, settings, ids[here], raw)
            _check_transformed(transforms, filled, ids[here])
            filled = filled[keep[here]]
            stored[row : row + len(filled)] = filled
            first, row = first + len(chunk), row + len(filled)
        stored.flush()
        del stored
    if first != len(table):
        raise _other_count(str(first), table, raw)
    if missing.any():
        logger.warning(
            "%d stamps have missing pixels, replaced by the policy %r", (missing > 0).sum(), settings.nan_policy
        )
    write_json(
        prepared / META,
        {
            "bands": list(cutouts.bands),
            "stamp_px": size,
            "unit": cutouts.unit,
            "top_down": cutouts.top_down,
            "image_shape": list(images.shape[1:]),
            "transforms": transforms.steps,
            "transforms_sha256": transforms.digest,
            "label": settings.label,
            "classes": classes,
            "edge": settings.edge,
            "pad_value": settings.pad_value,
            "nan_policy": settings.nan_policy,
            "nan_quantile": settings.nan_quantile,
            "left_out_for_overlap": int((~keep).sum()),
            "source": cutouts.note or {},
        },
    )
    samples = table.with_columns(split=pl.Series(split, dtype=pl.String), missing_fraction=pl.Series(missing))
    return samples.filter(pl.Series(keep))


def _other_count(stamps: str, table: pl.DataFrame, raw: Path) -> DataError:
    return DataError(f"{stamps} stamps were read for {len(table)} rows of the table", place=raw)


def class_names(table: pl.DataFrame, label: str, place: Path) -> list[str]:
    """The classes in the label column, sorted: of all splits, because a name tells nothing of a test object, and a
    class whose first object is dealt to another split must not shift the numbers of the others. Empty without labels.

    Raises:
        DataError: a label column was asked for that is not there, or it holds floating-point numbers.
    """
    if label not in table.columns:
        if label == _USUAL_LABEL:
            return []
        raise DataError(
            f"column {label!r} is missing",
            place="preprocess.label",
            remedy=did_you_mean(label, table.columns) or f"there are {', '.join(table.columns)}",
        )
    if table[label].dtype.is_float():
        raise DataError(
            f"column {label!r} holds floating-point numbers",
            place=place,
            allowed="text, integers or booleans as classes",
            remedy="name another column in preprocess.label",
        )
    return sorted(table[label].drop_nulls().cast(pl.String).unique().to_list())


def _check_transformed(transforms: Transforms, stamps: np.ndarray, ids: list[str]) -> None:
    """
    Raises:
        DataError: the images that a model would see are not finite, as the root of negative noise is not.
    """
    import torch

    for first in range(0, len(stamps), _CHECKED_AT_ONCE):
        images = transforms(torch.from_numpy(np.array(stamps[first : first + _CHECKED_AT_ONCE])))
        bad = ~images.flatten(1).isfinite().all(1)
        if bad.any():
            raise DataError(
                f"the transforms make values of {ids[first + int(bad.nonzero()[0])]!r} that are not finite",
                place="preprocess.transforms",
                remedy="use steps that take all values, such as asinh, or add the step nan_to_num",
            )


def deal(groups: Sequence[str], every_group: Sequence[str] | None, settings: GalaxiesPreprocess) -> np.ndarray:
    """The split of each stamp, (stamps,) of "train", "validation" or "test"; it never depends on the other stamps.

    Many groups are dealt by their hash. A few blocks of one image would miss the fractions by far (and often leave
    no validation at all), so all blocks that the image has are ranked by their hash and cut at the fractions; the
    ranks are fixed by the image's size, whatever is detected in it.

    Raises:
        DataError: the fractions leave nothing for training.
    """
    if every_group is None:
        return split_by_hash(groups, settings.split_seed, settings.validation_fraction, settings.test_fraction)
    ranked = sorted(every_group, key=lambda group: unit_hash(settings.split_seed, group))
    test = round(settings.test_fraction * len(ranked))
    validation = max(1, round(settings.validation_fraction * len(ranked)))
    if test + validation >= len(ranked):
        raise DataError(
            f"{test} test and {validation} validation blocks of {len(ranked)} leave nothing for training",
            place="preprocess.validation_fraction, preprocess.test_fraction",
            remedy="lower a fraction or preprocess.block_px",
        )
    names = ["test"] * test + ["validation"] * validation + ["train"] * (len(ranked) - test - validation)
    split = dict(zip(ranked, names, strict=True))
    return np.array([split[group] for group in groups], dtype=object)


def shares_no_pixel(centre_px: np.ndarray, split: np.ndarray, size_px: int) -> np.ndarray:
    """A mask, (stamps,) bool, of the stamps to keep so that no pixel is in two splits.

    Test keeps all of its stamps; validation loses those that touch test, training those that touch either. Hence the
    test set does not depend on what else is there.

    Args:
        centre_px: (stamps, 2) int, middle pixels in one image.
    """
    from scipy.spatial import KDTree

    keep = np.ones(len(split), bool)
    for mine, others in (("validation", ("test",)), ("train", ("test", "validation"))):
        rows = np.flatnonzero(split == mine)
        taken = centre_px[np.isin(split, others) & keep]
        if len(rows) and len(taken):
            keep[rows] = KDTree(taken).query(centre_px[rows], p=np.inf)[0] >= size_px
    return keep


def fill_missing(
    stamps: np.ndarray, settings: GalaxiesPreprocess, ids: list[str], place: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Replace pixels that are not finite.

    Args:
        stamps: (n, bands, height, width) float32.

    Returns:
        The stamps without missing pixels, and the share that was missing in each, (n,) float32. A band without any
        finite pixel becomes sky, zero.

    Raises:
        DataError: a pixel is missing and the policy is 'error'.
    """
    bad = ~np.isfinite(stamps)
    share = bad.mean((1, 2, 3), dtype=np.float32)
    if not bad.any():
        return stamps, share
    if settings.nan_policy == "error":
        worst = int(share.argmax())
        raise DataError(
            f"{(share > 0).sum()} stamps have pixels that are not finite, for example {ids[worst]!r} "
            f"({share[worst]:.1%} of it)",
            place=place,
            remedy="set preprocess.nan_policy to 'zero' or 'quantile'",
        )
    filled = np.where(bad, np.float32(0), stamps)
    if settings.nan_policy == "quantile":
        for i, band in np.argwhere(bad.any((2, 3))):
            finite = stamps[i, band][~bad[i, band]]
            if len(finite):
                filled[i, band][bad[i, band]] = np.quantile(finite, settings.nan_quantile)
    return filled, share
