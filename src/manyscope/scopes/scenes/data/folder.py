"""A clip of your own: frames, and beside them masks, depth, a camera's path and boxes, paired by numbers in names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.data.linking import absolute, link, refuse
from manyscope.errors import DataError
from manyscope.log import logger, progress
from manyscope.scopes.scenes.data.reading import (
    ValueCounts,
    check_size,
    first_few,
    read_binary,
    read_boxes,
    read_depth,
    read_frame,
    read_values,
)
from manyscope.scopes.scenes.data.sources import BOXES, DEPTH, FRAMES, MASKS, Masks, RawClip
from manyscope.scopes.scenes.data.video import Video, read_frames
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.whole import read_json, write_json

if TYPE_CHECKING:
    import polars as pl

    from manyscope.scopes.scenes.data.placing.camera import CameraPath
    from manyscope.scopes.scenes.settings import FolderSettings, ScenesDownload

NOTE = "folder.json"
_CAMERA, _VIDEO, _OBJECT = "camera.json", "video", "object-"
_DAVIS_FRAMES, _DAVIS_MASKS = "JPEGImages", "Annotations"
_WHITE = 255  # value of the only object where masks are black and white
_NUMBER_AT_END = re.compile(r"(\d+)\D*\Z")
_MOST_NUMBER = 2**63 - 1


@dataclass
class Own:
    """The user's files of one clip.

    Attributes:
        indices: numbers of the frames that are read, ascending.
        span: the first and the last number that there is.
        video: the file of all frames, or None.
        frames: number -> image, without a video.
        masks: number -> value images.
        objects: object -> number -> image, where each object has a folder.
        names: object -> its folder's name.
        boxes: number -> the file of an object, in no order that counts.
        white: whether the only value in the value images is 255, which is then object 1.
    """

    indices: list[int] = field(default_factory=list)
    span: tuple[int, int] = (0, 0)
    video: Path | None = None
    frames: dict[int, Path] = field(default_factory=dict)
    masks: dict[int, list[Path]] = field(default_factory=dict)
    objects: dict[int, dict[int, Path]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    white: bool = False
    depth: dict[int, Path] = field(default_factory=dict)
    boxes: dict[int, Path] = field(default_factory=dict)
    camera: Path | None = None


class Folder:
    """The files that `download.folder` names, which are only read."""

    def download(self, settings: ScenesDownload, raw: Path) -> Iterator[ManifestEntry]:
        """Link each file into `raw` under a name of one form, such as raw/frames/00012.jpg, and write raw/folder.json.

        Raises:
            DataError: a file is missing or breaks a rule; all that do are logged.
        """
        own, errors = examine(settings.folder)
        if errors:
            refuse(errors)
        if own.video:
            yield link(raw, _VIDEO + own.video.suffix.lower(), own.video)
        for index in own.indices:
            name = f"{index:05d}"
            for folder, files in ((FRAMES, own.frames), (DEPTH, own.depth)):
                if index in files:
                    yield link(raw, f"{folder}/{name}{files[index].suffix.lower()}", files[index])
            for number, file in enumerate(own.masks.get(index, [])):
                yield link(raw, f"{MASKS}/{name}_{number}{file.suffix.lower()}", file)
            for digit, images in own.objects.items():
                if index in images:
                    yield link(raw, f"{MASKS}/{_OBJECT}{digit}/{name}{images[index].suffix.lower()}", images[index])
        for number, file in own.boxes.items():
            yield link(raw, f"{BOXES}/{number:05d}.json", file)
        if own.camera:
            yield link(raw, _CAMERA, own.camera)
        names = {str(digit): name for digit, name in own.names.items()}
        note = {"indices": own.indices, "span": own.span, "white": own.white, "folders": names}
        write_json(raw / NOTE, note)
        yield ManifestEntry(NOTE, str(absolute(settings.folder.frames or Path())))

    def clip(self, settings: ScenesDownload, raw: Path, manifest: pl.DataFrame) -> RawClip:
        """
        Raises:
            DataError: the manifest or raw/folder.json is not of a folder.
        """
        return _Linked(settings.folder, raw, manifest).clip()

    def problems(self, settings: ScenesDownload) -> Iterator[str]:
        """Reads every file."""
        for error in examine(settings.folder)[1]:
            yield f"download.folder: {error}"


class _Linked:
    """The linked files of the raw data."""

    def __init__(self, settings: FolderSettings, raw: Path, manifest: pl.DataFrame) -> None:
        self.ignored, self.raw = set(settings.ignore_objects), raw
        try:
            note = read_json(raw / NOTE)
            self.indices, self.white = tuple(note["indices"]), note["white"]
            self.names, self.span = {int(digit): name for digit, name in note["folders"].items()}, note["span"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"not of a folder ({error})", place=raw / NOTE, remedy="download again") from error
        self.video: Video | None = None
        self.camera: CameraPath | None = None
        self.files: dict[str, dict[int, list[Path]]] = {}
        for path in manifest["path"].sort():
            folder, _, name = path.rpartition("/")
            if folder:
                index = int(Path(name).stem.partition("_")[0])
                self.files.setdefault(folder, {}).setdefault(index, []).append(raw / path)
            elif name == _CAMERA:
                self.camera = self._camera(raw / path)
            elif name.startswith(f"{_VIDEO}."):
                self.video = read_frames(raw / path)
        self.boxes = [read_boxes(file) for files in self.files.get(BOXES, {}).values() for file in files]

    def clip(self) -> RawClip:
        return RawClip(
            source="folder",
            indices=self.indices,
            frame=self._frame,
            masks=self._masks,
            depth=self._depth if DEPTH in self.files else None,
            camera=self.camera,
            boxes=self._boxes if self.boxes else None,
            notes={"folders": {str(digit): name for digit, name in self.names.items()}} if self.names else {},
        )

    def _frame(self, position: int) -> np.ndarray:
        index = self.indices[position]
        return self.video[index] if self.video is not None else read_frame(self.files[FRAMES][index][0])

    def _masks(self, position: int) -> Masks | None:
        index = self.indices[position]
        if self.names:
            images = {digit: self.files.get(f"{MASKS}/{_OBJECT}{digit}", {}).get(index) for digit in self.names}
            of_each = {digit: read_binary(files[0]) if files else None for digit, files in images.items()}
            # Where no object has a mask, nothing is known.
            kept = {digit: mask for digit, mask in of_each.items() if digit not in self.ignored}
            return kept if any(mask is not None for mask in of_each.values()) else None
        files = self.files.get(MASKS, {}).get(index)
        if files is None:
            return {} if MASKS not in self.files else None
        found: dict[int, np.ndarray] = {}
        for file in files:
            values = read_values(file)
            for value in np.unique(values[values > 0]).tolist():
                digit = 1 if self.white else value
                if digit not in self.ignored:
                    mask = values == value
                    found[digit] = found[digit] | mask if digit in found else mask
        return found

    def _depth(self, position: int) -> np.ndarray:
        return read_depth(self.files[DEPTH][self.indices[position]][0])

    def _boxes(self, position: int) -> dict[int, list[float]]:
        index = self.indices[position]
        return {digit: centres[index] for digit, centres in self.boxes if index in centres}

    def _camera(self, path: Path) -> CameraPath:
        """The path with the times of the chosen frames; those of the file are of all frames."""
        from manyscope.scopes.scenes.data.placing.camera import read_camera

        camera = read_camera(path)
        first, last = self.indices[0], self.indices[-1]
        if [first, last] == list(self.span) or first == last:
            return camera
        number = self.span[0] - first + camera.times * (self.span[1] - self.span[0])
        return replace(camera, times=number / (last - first))


def examine(settings: FolderSettings) -> tuple[Own, list[DataError]]:
    """The files of a clip, every one of them read, and everything that is wrong with them."""
    search = _Search(settings)
    search.find()
    search.read()
    return search.own, search.errors


def count(settings: FolderSettings) -> tuple[int, int]:
    """How many frames are chosen, by their names, and how many objects the masks have. What is missing or broken is
    none, and smoothed masks have none: see `examine`."""
    chosen = set(_between(sorted(_frame_numbers(settings)), settings)[:: settings.every])
    folder = absolute(settings.masks) if settings.masks else settings.frames and _beside(absolute(settings.frames))
    if not chosen or not folder or not folder.is_dir():
        return len(chosen), 0
    if folders := _object_folders(folder, settings.mask_pattern):
        return len(chosen), len(set(_digits([f.name for f in folders])) - set(settings.ignore_objects))
    counts = ValueCounts()
    files = [file for file in sorted(folder.iterdir()) if _number(settings.mask_pattern, file) in chosen]
    for file in progress(files, "counting objects", len(files)):
        with suppress(DataError):
            counts.add(read_values(file), file)
    try:
        counts.check()
    except DataError:
        return len(chosen), 0
    digits = {1} if set(counts.pixels) == {_WHITE} else set(counts.pixels)
    return len(chosen), len(digits - set(settings.ignore_objects))


def _frame_numbers(settings: FolderSettings) -> set[int]:
    place = absolute(settings.frames or Path())
    if settings.frames is not None and place.is_file():
        most = None if settings.last is None else settings.last + 1
        try:
            return set(range(sum(1 for _ in islice(read_frames(place), most))))
        except DataError:
            return set()
    if settings.frames is None or not place.is_dir():
        return set()
    found = {_number(settings.frame_pattern, file) for file in place.iterdir()}
    return {number for number in found if number is not None}


def _between(numbers: list[int], settings: FolderSettings) -> list[int]:
    first, last = settings.first, settings.last
    return [i for i in numbers if (first is None or i >= first) and (last is None or i <= last)]


def _object_folders(folder: Path, pattern: str) -> list[Path]:
    """The folders below the folder of masks, if it holds no masks itself."""
    folders = sorted(f for f in folder.iterdir() if f.is_dir() and f.name[0] != ".")
    return [] if any(_match(pattern, f.name) for f in folder.iterdir() if f.is_file()) else folders


def _number(pattern: str, file: Path) -> int | None:
    """What the pattern says of a file that the source reads."""
    match = _match(pattern, file.name) if file.name[0] != "." and file.is_file() else None
    try:
        return int(match["index"]) if match else None
    except (TypeError, ValueError):
        return None


class _Search:
    def __init__(self, settings: FolderSettings) -> None:
        self.settings, self.own = settings, Own()
        self.errors: list[DataError] = []

    def find(self) -> None:
        given = self.settings
        if given.frames is None:
            self._report("empty", "download.folder.frames", remedy="name the folder of your frames, or a video")
            return
        place = absolute(given.frames)
        if place.is_file():
            every = self._video(place)
        else:
            self.own.frames = self._numbered(place, given.frame_pattern, "frame")
            every = sorted(self.own.frames)
        if not every:
            return
        self.own.span = every[0], every[-1]
        self.own.indices = self._chosen(every, place)
        masks = absolute(given.masks) if given.masks else _beside(place)
        if masks is None:
            logger.info("%s: no masks, the scene has a background alone", place)
        else:
            self._find_masks(masks, set(every))
        if given.depth:
            self.own.depth = self._numbered(absolute(given.depth), given.depth_pattern, "depth")
            self._check_depth(absolute(given.depth))
        if given.boxes:
            self.own.boxes = self._numbered(absolute(given.boxes), given.boxes_pattern, "boxes")
        if given.camera:
            self.own.camera = absolute(given.camera)
        elif given.boxes:
            logger.warning("%s: boxes say nothing without download.folder.camera", given.boxes)

    def read(self) -> None:
        """Whatever can be wrong inside of the chosen files."""
        own, indices = self.own, self.own.indices
        size: tuple[int, int] | None = None
        frames = [own.frames[index] for index in indices] if own.frames else []
        for file in progress(frames, "checking frames", len(frames)):
            size = self._of_size(file, read_frame, size, "frame") or size
        if own.video and indices:
            size = self._video_size(own.video, indices[0])
        counts = ValueCounts()

        def counted(file: Path) -> np.ndarray:
            values = read_values(file)
            counts.add(values, file)
            return values

        for index in progress(indices, "checking masks", len(indices)):
            for file in own.masks.get(index, []):
                self._of_size(file, counted, size, "mask")
            for images in own.objects.values():
                if index in images:
                    self._of_size(images[index], read_binary, size, "mask")
            if index in own.depth:
                self._of_size(own.depth[index], read_depth, size, "depth")
        for boxes in own.boxes.values():
            self._try(lambda file=boxes: read_boxes(file))  # type: ignore[misc]
        self._try(counts.check)
        own.white = set(counts.pixels) == {_WHITE}
        if own.camera:
            from manyscope.scopes.scenes.data.placing.camera import read_camera

            self._try(lambda: read_camera(own.camera))  # type: ignore[arg-type]

    def _of_size(
        self, file: Path, read: Callable[[Path], np.ndarray], size: tuple[int, int] | None, what: str
    ) -> tuple[int, int] | None:
        try:
            picture = read(file)
            found = picture.shape[0], picture.shape[1]
            check_size(picture, size or found, file, what)
        except DataError as error:
            self.errors.append(error)
            return None
        return found

    def _video(self, file: Path) -> list[int]:
        try:
            video = read_frames(file)
            count = sum(1 for _ in progress(video, "checking frames"))
            if not count:
                raise DataError("the video has no frame", place=file, remedy="copy or convert it again")
        except DataError as error:
            self.errors.append(error)
            return []
        self.own.video = file
        return list(range(count))

    def _video_size(self, file: Path, index: int) -> tuple[int, int] | None:
        frame = read_frames(file)[index]
        return frame.shape[0], frame.shape[1]

    def _chosen(self, every: list[int], place: Path) -> list[int]:
        chosen = _between(every, self.settings)
        if not chosen:
            self._report(
                f"frames are numbered {every[0]} to {every[-1]}, and none of them is chosen",
                place,
                remedy="mend download.folder.first and last",
            )
            return []
        missing = chosen[-1] - chosen[0] + 1 - len(chosen)
        if missing:
            # Numbers may be times in nanoseconds, and those between them too many to list.
            between = chain.from_iterable(range(one + 1, other) for one, other in pairwise(chosen))
            logger.warning(
                "%s: numbers of %d frames are missing (%s); times follow the numbers, so that what moves is thought to "
                "have gone on moving", place, missing, first_few(between),
            )  # fmt: skip
        return chosen[:: self.settings.every]

    def _find_masks(self, folder: Path, frames: set[int]) -> None:
        own, pattern = self.own, self.settings.mask_pattern
        folders = _object_folders(folder, pattern) if folder.is_dir() else []
        if folders:
            own.names = dict(zip(_digits([f.name for f in folders]), [f.name for f in folders], strict=True))
            own.names = dict(sorted(own.names.items()))
            for digit, name in own.names.items():
                own.objects[digit] = self._numbered(folder / name, pattern, "mask")
            logger.info("%s: %s", folder, ", ".join(f"object {digit} is {name}" for digit, name in own.names.items()))
            numbers = {index for images in own.objects.values() for index in images}
        else:
            for (index, _), file in sorted(self._matched(folder, pattern, "mask").items()):
                own.masks.setdefault(index, []).append(file)
            numbers = set(own.masks)
        if not numbers or not own.indices:
            return
        if not numbers & set(own.indices):
            self._report(
                f"no mask is of a frame: masks are numbered {min(numbers)} to {max(numbers)}, the frames that are read "
                f"{own.indices[0]} to {own.indices[-1]}",
                folder,
                remedy="rename the masks, or mend download.folder.mask_pattern",
            )
            return
        if alone := sorted(numbers - frames):
            logger.warning("%s: %d masks have no frame (%s) and are ignored", folder, len(alone), first_few(alone))
        self._warn_of_unknown(folder)

    def _warn_of_unknown(self, folder: Path) -> None:
        own = self.own
        without = {"": [i for i in own.indices if i not in own.masks]} if own.masks else {}
        for digit, images in own.objects.items():
            without[f" of object {digit}"] = [i for i in own.indices if i not in images]
        parts = [
            f"{len(some)} frames have no mask{whose} ({first_few(some)})" for whose, some in without.items() if some
        ]
        if parts:
            logger.warning(
                "%s: %s; what is seen there is thought to be unknown; where an object is absent, its mask should be "
                "there and empty", folder, ", ".join(parts),
            )  # fmt: skip

    def _check_depth(self, folder: Path) -> None:
        without = [index for index in self.own.indices if index not in self.own.depth]
        if self.own.depth and without:
            self._report(
                f"{len(without)} frames have no depth ({first_few(without)})",
                folder,
                allowed="depth for every frame that is read, or for none",
                remedy="add it, or leave out download.folder.depth",
            )

    def _numbered(self, folder: Path, pattern: str, what: str) -> dict[int, Path]:
        """The files of a folder by their number; each has one of its own."""
        numbered: dict[int, Path] = {}
        for (index, _), file in sorted(self._matched(folder, pattern, what).items()):
            if index in numbered:
                self._twice(index, numbered[index], file)
            numbered.setdefault(index, file)
        return numbered

    def _matched(self, folder: Path, pattern: str, what: str) -> dict[tuple[int, int], Path]:
        key = "download.folder." + {"frame": "frames", "mask": "masks"}.get(what, what)
        if not folder.is_dir():
            self._report("no such folder", folder, remedy=f"mend {key}")
            return {}
        files = sorted(f for f in folder.iterdir() if f.is_file() and f.name[0] != ".")
        found: dict[tuple[int, int], Path] = {}
        ignored = []
        for file in files:
            match = _match(pattern, file.name)
            if match is None:
                ignored.append(file.name)
                continue
            groups = match.groupdict()
            try:
                number = int(groups["index"]), int(groups.get("overlap") or 0)
            except (TypeError, ValueError):
                self._report(
                    f"group 'index' of {what}_pattern is {groups['index']!r} in {file.name}, which is no number",
                    folder,
                    remedy=f"mend download.folder.{what}_pattern",
                )
                return {}
            if max(number) > _MOST_NUMBER:
                self._report(
                    f"the number {max(number)} is too large",
                    file,
                    allowed=f"0 to {_MOST_NUMBER}",
                    remedy=f"rename the file, or mend download.folder.{what}_pattern",
                )
                continue
            if number in found:
                self._twice(number[0], found[number], file)
            found.setdefault(number, file)
        if not files:
            self._report("the folder holds no file", folder, remedy=f"mend {key}")
        elif len(ignored) == len(files):
            self._report(
                f"the end of none of {len(files)} names, such as {files[0].name!r}, matches {pattern}",
                folder,
                remedy=f"mend {key} or download.folder.{what}_pattern",
            )
        elif ignored:
            logger.warning("%s: %d files do not match and are ignored (%s)", folder, len(ignored), first_few(ignored))
        return found

    def _twice(self, index: int, one: Path, other: Path) -> None:
        self._report(
            f"{one.name} and {other.name} have the same number {index}",
            one.parent,
            remedy="rename or remove one of them",
        )

    def _try(self, read: Callable[[], object]) -> None:
        try:
            read()
        except DataError as error:
            self.errors.append(error)

    def _report(self, found: str, place: object, allowed: str | None = None, remedy: str | None = None) -> None:
        self.errors.append(DataError(found, place=place, allowed=allowed, remedy=remedy))


def _match(pattern: str, name: str) -> re.Match[str] | None:
    """The longest end of a name that the pattern matches."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return next((m for start in range(len(name)) if (m := compiled.fullmatch(name, start))), None)


def _digits(names: Sequence[str]) -> list[int]:
    """The numbers at the ends of the names if each has one of its own and none is 0, else 1, 2, … in their order."""
    found = [_NUMBER_AT_END.search(name) for name in names]
    digits = [int(match[1]) if match else 0 for match in found]
    return digits if all(digits) and len(set(digits)) == len(digits) else list(range(1, len(names) + 1))


def _beside(frames: Path) -> Path | None:
    """The folder of masks where DAVIS has it: …/Annotations/480p/NAME for …/JPEGImages/480p/NAME."""
    parts = list(frames.parts)
    for i in range(len(parts) - 1, -1, -1):
        if parts[i] == _DAVIS_FRAMES:
            masks = Path(*parts[:i], _DAVIS_MASKS, *parts[i + 1 :])
            return masks if masks.is_dir() else None
    return None
