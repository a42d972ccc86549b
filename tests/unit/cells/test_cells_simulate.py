"""Simulated images: reproducible, resumable, with dark touching cells."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manyscope.errors import DataError
from manyscope.scopes.cells.settings import CellsDownload, SimulatedSettings
from manyscope.scopes.cells.simulate import Simulated, simulate

SETTINGS = SimulatedSettings()


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.tif"))
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def download(folder: Path, **drawn: int) -> CellsDownload:
    settings = CellsDownload(simulated=SimulatedSettings(**{"count": 3, "size_px": 64, **drawn}))
    list(Simulated().download(settings, folder))
    return settings


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(64, 200))
def test_shapes_types_and_labels(seed: int, size: int) -> None:
    image, labels = simulate(size, seed, SETTINGS)
    assert image.shape == labels.shape == (size, size)
    assert image.dtype == labels.dtype == np.uint16
    area = np.bincount(labels.ravel())
    assert (area[1:] >= 40).all()
    assert len(area) > 1


def test_a_seed_is_an_image() -> None:
    first, again, other = (simulate(96, seed, SETTINGS) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], other[0])


def test_statistics_are_those_of_brightfield() -> None:
    drawn = [simulate(256, seed, SETTINGS) for seed in range(6)]
    image, labels = (np.stack(part) for part in zip(*drawn, strict=True))
    dark, light = image[labels > 0].mean(), image[labels == 0].mean()
    assert 0.70 < dark / light < 0.85
    assert 0.20 < (labels > 0).mean() < 0.35
    assert 35 < np.mean([part.max() for part in labels]) < 65
    across = labels[:, :, 1:] != labels[:, :, :-1]
    touching = across & (labels[:, :, 1:] > 0) & (labels[:, :, :-1] > 0)
    assert min(touching.sum((1, 2))) > 20
    means = [
        [np.median(i[r : r + 128, c : c + 128][k[r : r + 128, c : c + 128] == 0]) for r in (0, 128) for c in (0, 128)]
        for i, k in zip(image, labels, strict=True)
    ]
    assert max(max(m) / min(m) for m in means) > 1.1


def test_a_cell_has_a_bright_rim_only_with_a_halo() -> None:
    from scipy.ndimage import binary_dilation

    def rim(halo: float) -> float:
        quiet = SimulatedSettings(halo=halo, illumination=0, noise=0, debris_per_px2=0)
        image, labels = simulate(192, 1, quiet)
        cells = labels > 0
        near = binary_dilation(cells, iterations=8) & ~binary_dilation(cells, iterations=5)
        return float(image[near].mean() / image[~binary_dilation(cells, iterations=14)].mean())

    assert rim(0.14) > 1.01
    assert rim(0.0) < 1.001


def test_debris_is_dark_and_has_no_label() -> None:
    few, many = (simulate(192, 3, SimulatedSettings(debris_per_px2=density, illumination=0)) for density in (0, 4e-3))
    np.testing.assert_array_equal(few[1], many[1])
    background = few[1] == 0
    assert many[0][background].mean() < 0.99 * few[0][background].mean()


def test_settings_that_draw_no_cell_are_an_error() -> None:
    with pytest.raises(DataError, match=r"download\.simulated: 0 cells of 40 px or more.*change cells_per_px2"):
        simulate(64, 0, SimulatedSettings(radius_min_px=0.5, radius_max_px=1))


def test_the_download_is_resumed_and_mends_what_is_broken(tmp_path: Path) -> None:
    download(tmp_path)
    before = digests(tmp_path)
    assert len(before) == 6
    image = tmp_path / "images/cells-0001.tif"
    image.write_bytes(image.read_bytes()[:-100])
    (tmp_path / "labels/cells-0002.tif").unlink()
    kept = (tmp_path / "images/cells-0000.tif").stat().st_mtime_ns
    download(tmp_path)
    assert digests(tmp_path) == before
    assert (tmp_path / "images/cells-0000.tif").stat().st_mtime_ns == kept


def test_more_images_change_no_other(tmp_path: Path) -> None:
    download(tmp_path / "few")
    download(tmp_path / "many", count=5)
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    assert few.items() < many.items()


@pytest.mark.parametrize("change", [{"size_px": 80}, {"halo": 0.1}])
def test_other_settings_draw_anew(tmp_path: Path, change: dict[str, int]) -> None:
    download(tmp_path)
    before = digests(tmp_path)
    download(tmp_path, **change)
    assert not set(before.values()) & set(digests(tmp_path).values())


def test_files_hold_what_was_drawn(tmp_path: Path) -> None:
    settings = download(tmp_path, count=2)
    for number in range(2):
        drawn = simulate(64, np.random.SeedSequence((settings.seed, number)), settings.simulated)
        for kind, pixels in zip(("images", "labels"), drawn, strict=True):
            np.testing.assert_array_equal(tifffile.imread(tmp_path / kind / f"cells-{number:04d}.tif"), pixels)
