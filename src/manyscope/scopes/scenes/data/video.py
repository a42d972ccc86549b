"""Video files, read frame by frame and written whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.tables.whole import whole_file

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

_MOST_RATE = 100_000  # denominator of the frames in a second
_ENOUGH = 0.9  # of the frames that the header says; what an edit list hides is counted there too
_QUALITY = {"mp4": "18", "webp": 85}


def read_frames(path: Path) -> Video:
    """The frames of a video file, (h, w, 3) uint8 each, in the order in which they are shown.

    Raises:
        DataError: missing, not a video, or without a video stream.
    """
    return Video(path)


class Video(Sequence[np.ndarray]):
    """The frames of a file. One is held at a time, and reading forwards decodes each once.

    Raises:
        DataError: of any access, where the file cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: Iterator[np.ndarray] | None = None
        self._next = 0
        self._length: int | None = None
        with self._decoding(0):
            self._open().close()

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._decoded()

    def __len__(self) -> int:
        """Counted by decoding: headers often say nothing or something else."""
        if self._length is None:
            self._length = sum(1 for _ in self)
        return self._length

    def __getitem__(self, position: int) -> np.ndarray:  # type: ignore[override]
        if self._frames is None or position < self._next:
            self._frames, self._next = self._decoded(), 0
        for frame in self._frames:
            self._next += 1
            if self._next > position:
                return frame
        self._frames = None
        raise IndexError(f"frame {position} of {self._next}")

    def _open(self) -> InputContainer:
        import av

        container = av.open(str(self.path))
        if not container.streams.video:
            container.close()
            raise DataError("the file has no video stream", place=self.path, allowed="a video file")
        return container

    def _decoded(self) -> Iterator[np.ndarray]:
        done = 0
        with self._decoding(0), self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            said = stream.frames
            decoded = container.decode(stream)
            while True:
                with self._decoding(done):
                    frame = next(decoded, None)
                    if frame is None:
                        break
                    # The angle is counted counterclockwise, as rot90 does.
                    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                done += 1
                yield np.ascontiguousarray(pixels)
        if done < _ENOUGH * said:
            raise DataError(
                f"{done} of {said} frames can be read",
                place=self.path,
                remedy="copy or convert the video again; it may be cut off",
            )
        if done < said:
            logger.warning("%s: %d of %d frames can be read", self.path, done, said)

    @contextmanager
    def _decoding(self, frame: int) -> Iterator[None]:
        import av

        try:
            yield
        except FileNotFoundError as error:
            raise DataError("the file is missing", place=self.path) from error
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(
                f"the video cannot be read at frame {frame} ({reason})",
                place=self.path,
                remedy="copy or convert it again; it may be cut off",
            ) from error


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames, (h, w, 3) uint8 of one size, as H.264. An odd edge is repeated once, since the format has colours
    for pairs of pixels. The same frames give the same bytes. Frames are asked for one by one and not kept.

    Raises:
        ValueError: there is no frame.
        DataError: the file cannot be written.
    """
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    rate = Fraction(fps).limit_denominator(_MOST_RATE)
    with _writing(path, "mp4", options) as container:
        # x264's spreading of bits over macroblock trees reads memory beyond small frames: other bytes each time.
        encoding = {"crf": str(_QUALITY["mp4"]), "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=encoding)
        stream.pix_fmt = "yuv420p"
        _encode(container, stream, map(_even, frames))


def write_webp(path: Path, frames: Iterable[np.ndarray], fps: float) -> None:
    """Write frames, (h, w, 3) uint8 of one size, as an animation that never ends; each is shown for a whole number of
    milliseconds. Frames are asked for one by one and not kept.

    Raises:
        ValueError: there is no frame.
        DataError: the file cannot be written.
    """
    rate = Fraction(1000, max(1, round(1000 / fps)))
    with _writing(path, "webp", {"loop": "0"}) as container:
        stream = container.add_stream("libwebp_anim", rate=rate, options={"quality": str(_QUALITY["webp"])})
        stream.pix_fmt = "bgra"
        _encode(container, stream, frames)


@contextmanager
def _writing(path: Path, form: str, options: dict[str, str]) -> Iterator[OutputContainer]:
    import av

    with whole_file(path) as partial, av.open(str(partial), "w", format=form, container_options=options) as container:
        yield container


def _encode(container: OutputContainer, stream: VideoStream, frames: Iterable[np.ndarray]) -> None:
    import av

    # The bytes also depend on the number of threads.
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= av.codec.context.Flags.bitexact
    done = 0
    for picture in frames:
        if not done:
            stream.height, stream.width = picture.shape[:2]
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        done += 1
    if not done:
        raise ValueError("no frame to write")
    container.mux(stream.encode())


def _even(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    return np.ascontiguousarray(np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
