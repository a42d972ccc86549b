"""From a raw clip to prepared arrays: one working size, one split by place in the clip, and the first placement."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.scenes.data.clip import DEPTH, FRAMES, HALF, KNOWN, MASKS, META, TRUTH
from manyscope.scopes.scenes.data.reading import MASKS_ARE, first_few, whole_array
from manyscope.tables.arrays import map_array
from manyscope.tables.whole import write_json

if TYPE_CHECKING:
    from manyscope.scopes.scenes.data.sources import RawClip
    from manyscope.scopes.scenes.settings import ScenesPreprocess, ScenesSettings

_SMALLEST_PX = 16
_SCHEMA: dict[str, Any] = {
    "sample_id": pl.String,
    "group": pl.String,
    "split": pl.String,
    "index": pl.Int64,
    "time": pl.Float64,
    "objects": pl.Int32,
    "covered": pl.Float64,
}


def prepare(clip: RawClip, settings: ScenesPreprocess, raw: Path, prepared: Path) -> pl.DataFrame:
    """Write, one frame at a time, what `manyscope.scopes.scenes.data.clip.Clip` reads, and the placement.

    Returns:
        The frames as samples: sample_id, group, split, index, time, objects (how many are to be seen) and covered (the
        share of the frame that they cover), both null where no mask is known.

    Raises:
        DataError: there are too few frames, too many objects, or no background; pictures differ in size.
    """
    count = len(clip.indices)
    split = deal(count, settings.held_out_every, raw)
    trained = np.flatnonzero(np.array(split) == "train")
    writer = _Writer(clip, settings, raw, prepared)
    writer.frames()
    digits = writer.masks(trained)
    writer.depth()
    writer.truth(digits)
    objects = [f"object-{digit}" for digit in digits]
    height, width = writer.size
    meta = {"source": clip.source, "objects": objects, "digits": digits, "height_px": height, "width_px": width}
    write_json(prepared / META, {**clip.notes, **meta})
    numbers = np.array(clip.indices, np.int64)
    times = (numbers - numbers[0]) / (numbers[-1] - numbers[0])
    _place(clip, settings, prepared, digits, times, trained)
    logger.info(
        "%d frames of %d x %d px, %d objects; %d frames to train on, %d to choose by, %d to judge by",
        count, width, height, len(objects), *(split.count(name) for name in ("train", "validation", "test")),
    )  # fmt: skip
    names = [f"frame-{index:05d}" for index in clip.indices]
    columns = (names, names, split, numbers, times, *_seen(prepared))
    return pl.DataFrame(dict(zip(_SCHEMA, columns, strict=True)), schema=_SCHEMA)


def deal(count: int, held_out_every: int, place: object) -> list[str]:
    """The split of each frame by its position p: held out is each p with p % held_out_every == held_out_every - 1, but
    for the first and the last; of those, in order, the second of every four is for validation and the others for test.

    Raises:
        DataError: there are too few frames for one of each.
    """
    needed = 2 * held_out_every + 1
    if count < needed:
        raise DataError(
            f"the clip has {count} {'frame' if count == 1 else 'frames'}",
            place=place,
            allowed=f"at least {needed}, with preprocess.held_out_every {held_out_every}",
            remedy="take more frames, or hold out more often",
        )
    split = ["train"] * count
    held_out = range(held_out_every - 1, count - 1, held_out_every)
    for i, position in enumerate(held_out):
        split[position] = "validation" if i % 4 == 1 else "test"
    return split


def count_problems(settings: ScenesSettings) -> Iterator[str]:
    """What `prepare` will refuse of the numbers of frames and objects, one sentence each, where the settings or the
    files of the source tell them before the download. Nothing is said of files that are missing or broken; `problems`
    of the source does that."""
    download, given = settings.download, settings.preprocess
    if download.source == "synthetic":
        frames, objects = download.synthetic.frames, download.synthetic.sprites
    elif download.source == "folder":
        from manyscope.scopes.scenes.data.folder import count

        frames, objects = count(download.folder)
        if not frames:
            return
    else:
        return
    place = f"download.{download.source}"
    try:
        deal(frames, given.held_out_every, place)
    except DataError as error:
        yield str(error)
    if objects > given.most_objects:
        yield str(_too_many(f"found {objects} objects", given.most_objects, place))


def working_size(height: int, width: int, settings: ScenesPreprocess, place: Path) -> tuple[int, int]:
    """Height and width after shrinking.

    Raises:
        DataError: too small to work with.
    """
    scale = min(settings.resolution_factor, settings.longest_px / max(height, width))
    size = round(height * scale), round(width * scale)
    if min(size) < _SMALLEST_PX:
        raise DataError(
            f"frames of {width} x {height} px become {size[1]} x {size[0]}",
            place=place,
            allowed=f"{_SMALLEST_PX} px or more",
            remedy="raise preprocess.resolution_factor or preprocess.longest_px, or take larger frames",
        )
    return size


def _too_many(found: str, most: int, place: object) -> DataError:
    return DataError(
        found,
        place=place,
        allowed=f"{most}; {MASKS_ARE}",
        remedy="save the masks again if an edge has values of its own, else raise preprocess.most_objects",
    )


@dataclass
class _Writer:
    clip: RawClip
    settings: ScenesPreprocess
    raw: Path
    prepared: Path

    def __post_init__(self) -> None:
        first = self.clip.frame(0)
        self.raw_size = first.shape[0], first.shape[1]
        self.size = working_size(*self.raw_size, self.settings, self.raw)
        self.count = len(self.clip.indices)

    def frames(self) -> None:
        with whole_array(self.prepared / FRAMES, np.uint8, (self.count, *self.size, 3)) as array:
            for position in progress(range(self.count), "frames"):
                array[position] = self._shrunk(self.clip.frame(position), position, "frame")

    def masks(self, trained: np.ndarray) -> list[int]:
        """Write masks and where they are known; returns the objects, of which each is in some training frame.

        Raises:
            DataError: too many objects, or no background.
        """
        digits = self._digits()
        shape = (self.count, len(digits), *self.size)
        known = np.zeros((self.count, len(digits)), bool)
        with whole_array(self.prepared / MASKS, np.uint8, shape) as array:
            for position in progress(range(self.count), "masks"):
                found = self.clip.masks(position)
                for row, digit in enumerate(digits):
                    mask = None if found is None else found.get(digit, False)
                    known[position, row] = mask is not None
                    if isinstance(mask, np.ndarray):
                        array[position, row] = self._shrunk(mask.astype(np.uint8) * 255, position, "mask")
        seen = self._in_training(trained, len(digits))
        if not seen.all():
            lost = [digit for digit, kept in zip(digits, seen, strict=True) if not kept]
            logger.warning(
                "%d objects are in no training frame and become background (%s)", len(lost), first_few(lost)
            )  # fmt: skip
            self._keep(seen)
            known, digits = known[:, seen], [digit for digit in digits if digit not in lost]
        with whole_array(self.prepared / KNOWN, np.bool_, known.shape) as array:
            array[:] = known
        self._check_background(trained)
        return digits

    def depth(self) -> None:
        if self.clip.depth is None:
            return
        with whole_array(self.prepared / DEPTH, np.float32, (self.count, *self.size)) as array:
            for position in progress(range(self.count), "depth"):
                array[position] = self._shrunk(self.clip.depth(position), position, "depth")

    def truth(self, digits: list[int]) -> None:
        """Truth is of pixels and of all objects: with others it is no truth."""
        folder = self.clip.truth
        if folder is None:
            return
        objects = map_array(folder / "layers.npy", "run the stage 'download' again").shape[1]
        if self.size != self.raw_size or digits != list(range(1, objects + 1)):
            why = "the frames are shrunk" if self.size != self.raw_size else "an object is left out"
            logger.warning("%s: %s, so that nothing can be compared with the truth", folder, why)
            return
        (self.prepared / TRUTH).mkdir(parents=True)
        for file in sorted(folder.glob("*.npy")):
            shutil.copyfile(file, self.prepared / TRUTH / file.name)

    def _digits(self) -> list[int]:
        digits: set[int] = set()
        most = self.settings.most_objects
        for position in progress(range(self.count), "objects"):
            found = self.clip.masks(position) or {}
            digits |= set(found)
            if len(digits) > most:
                index = self.clip.indices[position]
                raise _too_many(
                    f"found {len(digits)} objects by frame {index}, {len(found)} of them in it", most, self.raw
                )
        return sorted(digits)

    def _in_training(self, trained: np.ndarray, objects: int) -> np.ndarray:
        masks = map_array(self.prepared / MASKS)
        seen = np.zeros(objects, bool)
        for position in trained:
            seen |= (masks[position] >= HALF).any((1, 2))
        return seen

    def _keep(self, kept: np.ndarray) -> None:
        masks = map_array(self.prepared / MASKS)
        with whole_array(self.prepared / MASKS, np.uint8, (self.count, int(kept.sum()), *self.size)) as array:
            for position in range(self.count):
                array[position] = masks[position, kept]

    def _check_background(self, trained: np.ndarray) -> None:
        masks = map_array(self.prepared / MASKS)
        if all(_covered(masks[position]).all() for position in trained):
            raise DataError(
                f"the masks cover every pixel of all {len(trained)} training frames",
                place=self.raw,
                allowed="masks that leave some background",
                remedy="check that the masks' background is 0, or name it in download.folder.ignore_objects",
            )

    def _shrunk(self, picture: np.ndarray, position: int, what: str) -> np.ndarray:
        """The picture at the working size, each pixel a mean over what it shows."""
        from PIL import Image

        if picture.shape[:2] != self.raw_size:
            raise DataError(
                f"the {what} of frame {self.clip.indices[position]} has shape {picture.shape[:2]}",
                place=self.raw,
                allowed=f"{self.raw_size}, that of the first frame",
            )
        if self.size == self.raw_size:
            return picture
        smooth = Image.Resampling.LANCZOS if what == "frame" else Image.Resampling.BOX
        return np.asarray(Image.fromarray(picture).resize(self.size[::-1], smooth))


def _place(
    clip: RawClip,
    settings: ScenesPreprocess,
    prepared: Path,
    digits: list[int],
    times: np.ndarray,
    trained: np.ndarray,
) -> None:
    from manyscope.scopes.scenes.data.placing import place

    placement = place(
        map_array(prepared / FRAMES),
        map_array(prepared / MASKS),
        map_array(prepared / KNOWN),
        times,
        trained,
        settings.placement,
        depth=None if clip.depth is None else map_array(prepared / DEPTH),
        camera=clip.camera,
        boxes=_boxes(clip, digits),
    )
    placement.save(prepared)


def _boxes(clip: RawClip, digits: list[int]) -> np.ndarray | None:
    """The middles of the objects' boxes, (T, O, 3), NaN where there is none."""
    if clip.boxes is None:
        return None
    centres = np.full((len(clip.indices), len(digits), 3), np.nan)
    for position in range(len(clip.indices)):
        for digit, centre in clip.boxes(position).items():
            if digit in digits:
                centres[position, digits.index(digit)] = centre
    return centres


def _seen(prepared: Path) -> tuple[list[int | None], list[float | None]]:
    """For each frame, the number of objects that are seen and the share of it that they cover."""
    masks, known = map_array(prepared / MASKS), map_array(prepared / KNOWN)
    objects: list[int | None] = []
    covered: list[float | None] = []
    for mask, sure in zip(masks, known, strict=True):
        unknown = len(sure) > 0 and not sure.any()
        objects.append(None if unknown else int((mask >= HALF).any((1, 2)).sum()))
        covered.append(None if unknown else float(_covered(mask).mean()))
    return objects, covered


def _covered(masks: np.ndarray) -> np.ndarray:
    """From masks (O, h, w) to the share of each pixel that they cover together; exact where none overlap."""
    return masks.sum(0, dtype=np.uint32).clip(0, 255) / 255
