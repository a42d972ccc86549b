"""Simulated galaxies: repeatable one by one, drawn in chunks that a killed download keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from pydantic import ValidationError

from manyscope.errors import DataError
from manyscope.scopes.galaxies import simulate as module
from manyscope.scopes.galaxies.settings import GalaxiesDownload, SimulatedSettings
from manyscope.scopes.galaxies.simulate import ANOMALIES, CLASSES, Simulated, simulate
from manyscope.tables.manifest import describe

SMALL = SimulatedSettings(count=50, stamp_px=32, anomaly_fraction=0.3)


@hypothesis_settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6, unique=True), st.integers(0, 5))
def test_an_image_depends_on_seed_and_index_alone(indices: list[int], seed: int) -> None:
    together, labels = simulate(seed, np.array(indices), SMALL)
    alone, label = simulate(seed, np.array(indices[-1:]), SMALL)
    # to the last digit or so: with others in the array, vector instructions round some values otherwise
    np.testing.assert_allclose(together[-1:], alone, rtol=1e-6, atol=1e-6)
    assert_frame_equal(labels[-1], label, rel_tol=1e-6)


def test_another_seed_gives_other_images() -> None:
    assert not np.array_equal(simulate(0, np.arange(2), SMALL)[0], simulate(1, np.arange(2), SMALL)[0])


def test_sky_is_zero_with_unit_noise_and_the_galaxy_sits_on_the_middle_pixel() -> None:
    images, labels = simulate(0, np.arange(300), SimulatedSettings(anomaly_fraction=0.0))
    assert images.shape == (300, 3, 48, 48)
    assert images.dtype == np.float32
    corner = images[..., :6, :6]
    assert corner.mean() == pytest.approx(0, abs=0.05)
    assert corner.std() == pytest.approx(1, abs=0.03)
    single = (labels["class"] != "merger").to_numpy()
    mean = images[single].mean((0, 1))
    assert np.unravel_index(mean.argmax(), mean.shape) == (24, 24)


def test_every_class_and_kind_occurs_and_a_fraction_of_anomalies() -> None:
    _, labels = simulate(3, np.arange(600), SimulatedSettings(anomaly_fraction=0.3, stamp_px=24))
    assert set(labels["class"]) == set(CLASSES)
    assert set(labels["anomaly"]) == {*ANOMALIES, "none"}
    assert (labels["anomaly"] != "none").mean() == pytest.approx(0.3, abs=0.06)
    assert labels["snr"].is_between(30, 150).all()


def test_an_anomaly_is_all_that_differs_from_its_normal_twin() -> None:
    odd, labels = simulate(0, np.arange(60), SMALL.model_copy(update={"anomaly_fraction": 1.0}))
    normal, twins = simulate(0, np.arange(60), SMALL.model_copy(update={"anomaly_fraction": 0.0}))
    assert labels["class"].equals(twins["class"])
    change = np.abs(odd - normal).max((1, 2, 3))
    assert (change > 0.5).all()
    for kind, sign in (("trail", 1), ("arc", 1), ("double_nucleus", 1), ("cosmic_ray", 1)):
        rows = (labels["anomaly"] == kind).to_numpy()
        assert ((odd - normal)[rows] * sign > -1e-3).all(), kind


def test_a_brighter_galaxy_collects_more_light() -> None:
    images, labels = simulate(0, np.arange(200), SimulatedSettings(anomaly_fraction=0.0))
    light = np.log(images.sum((1, 2, 3)).clip(1))
    expected = np.log(labels["snr"].to_numpy() * labels["half_light_radius"].to_numpy())
    assert np.corrcoef(light, expected)[0, 1] > 0.9


def download(raw: Path, count: int, **changes: object) -> None:
    settings = GalaxiesDownload(source="simulated", simulated=SimulatedSettings(count=count, stamp_px=24, **changes))
    list(Simulated().download(settings, raw))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First index of every chunk that is drawn from now on; chunks of twenty."""
    calls: list[int] = []
    genuine = module.simulate

    def watched(seed: int, indices: np.ndarray, settings: SimulatedSettings) -> object:
        calls.append(int(indices[0]))
        return genuine(seed, indices, settings)

    monkeypatch.setattr(module, "simulate", watched)
    monkeypatch.setattr(module, "_CHUNK", 20)
    return calls


def test_a_killed_download_continues_without_drawing_again(tmp_path: Path, drawn: list[int]) -> None:
    settings = GalaxiesDownload(source="simulated", simulated=SimulatedSettings(count=50, stamp_px=24))
    entries = Simulated().download(settings, tmp_path)
    for _ in range(3):  # both files of the first chunk, and the second chunk's images
        next(entries)
    entries.close()
    (tmp_path / "labels-0000020.parquet").unlink()  # as if killed between the two files
    assert drawn == [0, 20]
    drawn.clear()
    done = list(Simulated().download(settings, tmp_path))
    assert drawn == [20, 40]
    assert len(describe(tmp_path, done)) == 6
    drawn.clear()
    list(Simulated().download(settings, tmp_path))
    assert drawn == []


def test_a_larger_data_set_keeps_its_chunks_and_other_settings_do_not(tmp_path: Path, drawn: list[int]) -> None:
    download(tmp_path, 40)
    drawn.clear()
    download(tmp_path, 60)
    assert drawn == [40]
    drawn.clear()
    download(tmp_path, 60, anomaly_fraction=0.5)
    assert drawn == [0, 20, 40]


def test_a_broken_chunk_is_drawn_again(tmp_path: Path, drawn: list[int]) -> None:
    download(tmp_path, 40)
    (tmp_path / "images-0000000.npy").write_bytes(b"\x93NUMPY, cut short")
    (tmp_path / "labels-0000020.parquet").write_bytes(b"PAR1")
    drawn.clear()
    download(tmp_path, 40)
    assert drawn == [0, 20]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((40, 3, 24, 24), np.float64), "float64"),
        (np.zeros((39, 3, 24, 24), np.float16), r"\(39, 3, 24, 24\)"),
        (None, "not a readable array"),
    ],
)
def test_a_wrong_array_is_named(tmp_path: Path, content: np.ndarray | None, message: str) -> None:
    path = tmp_path / "images-0000000.npy"
    if content is None:
        path.write_bytes(b"no array")
    else:
        np.save(path, content)
    with pytest.raises(DataError, match=message) as error:
        module.open_images(path, 40)
    assert error.value.place == path


def test_signal_to_noise_must_be_in_order() -> None:
    with pytest.raises(ValidationError, match=r"snr_max 5.0 is below snr_min 30.0"):
        SimulatedSettings(snr_max=5.0)
