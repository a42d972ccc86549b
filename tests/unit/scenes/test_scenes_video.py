"""Video files: written so that they read back, the same bytes each time, and refused where they are broken."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.log import logger
from manyscope.scopes.scenes.data.video import read_frames, write_mp4, write_webp


def moving(count: int = 8, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """A bright square on a slope, further to the right in each frame."""
    slope = np.linspace(20, 120, width)[None, :, None] * np.ones((height, 1, 3))
    frames = [slope.astype(np.uint8).copy() for _ in range(count)]
    for number, frame in enumerate(frames):
        frame[10:30, 4 * number + 2 : 4 * number + 22] = (220, 60, 40)
    return frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63)])
def test_mp4_reads_back_and_has_the_same_bytes_each_time(tmp_path: Path, height: int, width: int) -> None:
    frames = moving(8, height, width)
    one, other = tmp_path / "one.mp4", tmp_path / "other.mp4"
    write_mp4(one, frames, 12.5)
    used = []  # other memory in other hands each time: an encoder that reads what nobody wrote gives other bytes
    for number in range(12):
        used = [np.full(size, number + 1, np.uint8) for size in (900, 3_000, 10_000, 40_000, 150_000)]
        write_mp4(other, iter(frames), 12.5)
        assert one.read_bytes() == other.read_bytes()
    assert used
    video = read_frames(one)
    assert len(video) == 8
    for found, frame in zip(video, frames, strict=True):
        assert found.shape == (48, 64, 3)
        assert psnr(found[:height, :width], frame) > 30
    with av.open(str(one)) as container:
        assert container.streams.video[0].average_rate == 12.5
    assert not list(tmp_path.glob(".*"))


def test_frames_are_had_in_any_order(tmp_path: Path) -> None:
    write_mp4(tmp_path / "clip.mp4", moving(), 10)
    video = read_frames(tmp_path / "clip.mp4")
    every = list(video)
    for position in (0, 5, 7, 2, 2, 3):
        assert np.array_equal(video[position], every[position])
    with pytest.raises(IndexError):
        video[8]
    assert np.array_equal(video[1], every[1])


def test_webp_is_an_animation(tmp_path: Path) -> None:
    frames = moving(5)
    write_webp(tmp_path / "clip.webp", iter(frames), 20)
    write_webp(tmp_path / "again.webp", frames, 20)
    assert (tmp_path / "clip.webp").read_bytes() == (tmp_path / "again.webp").read_bytes()
    with Image.open(tmp_path / "clip.webp") as image:
        assert image.n_frames == 5
        assert image.info["loop"] == 0
        for number, frame in enumerate(frames):
            image.seek(number)
            image.load()
            assert image.info["duration"] == 50
            assert psnr(np.asarray(image.convert("RGB")), frame) > 25


@pytest.mark.parametrize("write", [write_mp4, write_webp])
def test_no_frame_leaves_no_file(tmp_path: Path, write: type) -> None:
    with pytest.raises(ValueError, match="no frame"):
        write(tmp_path / "clip", [], 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_mp4, write_webp])
def test_frames_are_asked_for_one_by_one_and_not_kept(tmp_path: Path, write: type) -> None:
    alive: set[int] = set()
    most = []

    def drawn() -> Iterator[np.ndarray]:
        for number, frame in enumerate(moving(20)):
            picture = frame.copy()
            alive.add(number)
            weakref.finalize(picture, alive.discard, number)
            yield picture
            most.append(len(alive))

    write(tmp_path / "clip", drawn(), 10)
    assert len(most) == 20
    assert max(most) <= 3


def test_an_error_among_the_frames_leaves_what_was_there(tmp_path: Path) -> None:
    def broken() -> object:
        yield from moving(2)
        raise RuntimeError("rendering failed")

    file = tmp_path / "clip.mp4"
    write_mp4(file, moving(2), 10)
    before = file.read_bytes()
    with pytest.raises(RuntimeError, match="rendering failed"):
        write_mp4(file, broken(), 10)  # type: ignore[arg-type]
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    text, sound = tmp_path / "text.mp4", tmp_path / "sound.wav"
    text.write_text("no video at all " * 50)
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"text\.mp4: the video cannot be read .*copy or convert it again"):
        read_frames(text)
    with pytest.raises(DataError, match=r"sound\.wav: the file has no video stream"):
        read_frames(sound)
    with pytest.raises(DataError, match=r"none\.mp4: the file is missing"):
        read_frames(tmp_path / "none.mp4")


def test_a_video_that_is_cut_off_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    file = tmp_path / "clip.mp4"
    write_mp4(file, [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(60)], 10)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"clip\.mp4: .*cut off"):
        len(read_frames(file))
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.WARNING, logger="manyscope")
    file.write_bytes(whole[:-50])
    assert len(read_frames(file)) >= 54
    assert "of 60 frames can be read" in caplog.text


def test_a_film_held_upright_is_turned(tmp_path: Path) -> None:
    """Telephones store such films lying, with a note of the angle."""
    file = tmp_path / "clip.mp4"
    write_mp4(file, moving(2), 10)
    content = bytearray(file.read_bytes())
    at = content.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 8  # version, times and ids, reserved, layer and volume
    unit = 0x10000
    assert content[at : at + 36] == b"".join(n.to_bytes(4, "big") for n in (unit, 0, 0, 0, unit, 0, 0, 0, 0x40000000))
    quarter = (0, unit, 0, -unit, 0, 0, 48 * unit, 0, 0x40000000)  # clockwise
    content[at : at + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in quarter)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    assert np.array_equal(read_frames(turned)[1], np.rot90(read_frames(file)[1], -1))
