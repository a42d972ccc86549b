"""The scope as the chain sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from manyscope.errors import CheckpointError, DataError
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.data.thumbnails import rgb
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesSettings
from manyscope.scopes.registry import find_scope
from manyscope.training.checkpoints import save_weights

REPOSITORY = Path(__file__).resolve().parents[3]


def test_it_is_found_by_its_name() -> None:
    assert isinstance(find_scope("galaxies"), Galaxies)


def test_importing_it_is_light() -> None:
    code = "import sys, manyscope.scopes.galaxies.scope; print(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "polars", "PIL", "sep", "skimage", "matplotlib", "pytorch_lightning"}
    assert not heavy & {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("name", ["galaxies", "galaxies_simulated", "galaxies_autoencoder", "../test/galaxies"])
def test_experiments_are_valid_and_without_problems(name: str) -> None:
    values = YAML(typ="safe").load(REPOSITORY / f"config/experiments/{name}.yaml")
    assert list(Galaxies().problems(GalaxiesSettings(**values))) == []


def test_problems_are_found_before_anything_runs() -> None:
    settings = GalaxiesSettings(
        scope="galaxies",
        download={"source": "simulated", "simulated": {"stamp_px": 32}},  # type: ignore[arg-type]
        preprocess={"transforms": [{"name": "asinnh"}]},  # type: ignore[arg-type]
        model={"name": "invariannt"},  # type: ignore[arg-type]
    )
    problems = list(Galaxies().problems(settings))
    assert [p.split(":")[0] for p in problems] == ["model.name", "preprocess.transforms", "preprocess.stamp_px"]
    assert "did you mean 'invariant'" in problems[0]


def test_an_experiment_without_its_test_samples_cannot_be_judged() -> None:
    settings = GalaxiesSettings(scope="galaxies", infer={"splits": ["train", "validation"]})
    assert [p.split(":")[0] for p in Galaxies().problems(settings)] == ["infer.splits"]


def test_every_stage_reads_only_its_sections(tiny: GalaxiesSettings, raw: Path, prepared: Path, tmp_path: Path) -> None:
    from manyscope.tables.manifest import read_manifest

    scope = Galaxies()
    assert list(scope.download(tiny.for_stage("download"), raw))
    (tmp_path / "p").mkdir()
    manifest = read_manifest(raw / "manifest.parquet")
    assert len(scope.preprocess(tiny.for_stage("preprocess"), raw, manifest, tmp_path / "p")) == 240
    for stage in ("train", "infer", "evaluate"):
        settings = tiny.for_stage(stage)
        model = scope.model(settings, scope.data(settings, prepared)).eval()
    with torch.inference_mode():
        batch = next(iter(scope.data(settings, prepared).predict_batches(["sim-000007", "sim-000003"], 8)))
        objects = scope.predict_batch(tiny.for_stage("infer"), model, batch)
    assert objects.object_id == ["sim-000007", "sim-000003"]
    assert objects.embedding.shape == (2, 16)
    assert objects.embedding.dtype == np.float32


def test_preprocess_gives_the_same_bytes_again(
    tiny: GalaxiesSettings, raw: Path, prepared: Path, tmp_path: Path
) -> None:
    from manyscope.tables.manifest import read_manifest

    Galaxies().preprocess(tiny, raw, read_manifest(raw / "manifest.parquet"), tmp_path)
    for name in ("stamps.npy", "stamps.json"):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes()


def test_thumbnails_come_in_the_asked_order(prepared: Path, data: StampData) -> None:
    objects = pl.DataFrame({"object_id": ["sim-000005", "nobody", "sim-000000"]})
    pictures = list(Galaxies().thumbnails(prepared, prepared.parent / "files", objects))
    assert pictures[1] is None
    for picture, row in ((pictures[0], 5), (pictures[2], 0)):
        assert picture is not None
        assert (picture.size, picture.mode) == ((32, 32), "RGB")
        np.testing.assert_array_equal(np.asarray(picture), rgb(data.stamps[row])[::-1])


def test_a_picture_keeps_the_colour_of_bright_pixels() -> None:
    stamp = np.zeros((3, 8, 8), np.float32)
    stamp[:, 2, 2] = [400, 400, 400]
    stamp[:, 5, 5] = [100, 200, 2000]  # blue, green, red
    picture = rgb(stamp)
    assert np.ptp(picture[2, 2].astype(int)) <= 1
    red, green, blue = picture[5, 5].astype(int)
    assert red > green > blue
    assert picture[0, 0].max() < 40
    assert rgb(stamp[:1]).shape == (8, 8, 3)


@pytest.fixture
def weights(tiny: GalaxiesSettings, data: StampData, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Galaxies().model(tiny, data)
    save_weights(tmp_path / "model.ckpt", model, "galaxies", tiny.model.model_dump(mode="json"))
    return tmp_path / "model.ckpt"


def test_a_picture_finds_the_stamp_that_it_shows(
    tiny: GalaxiesSettings, prepared: Path, data: StampData, weights: Path, tmp_path: Path
) -> None:
    rows = np.argsort(-data.samples["snr"].to_numpy())[:20]
    stamp = data.stamps[rows[3]]
    pixels = (stamp * 4 + 60).clip(0, 255).round().astype(np.uint8)  # sky at 60, its rms 4 grey levels
    Image.fromarray(np.ascontiguousarray(pixels[::-1, ::-1].transpose(1, 2, 0))).save(tmp_path / "query.png")
    found = Galaxies().embed_query(tiny, prepared, weights, tmp_path / "query.png")
    model = Galaxies().model(tiny, data)
    model.load_state_dict(torch.load(weights, weights_only=True)["state_dict"])
    with torch.inference_mode():
        latent = model.eval()(data.batch(rows)["images"]).numpy()
    scale = latent.std(0)
    assert found.shape == (16,)
    assert found.dtype == np.float32
    assert np.linalg.norm((latent - found) / scale, axis=1).argmin() == 3


def test_pictures_that_cannot_be_embedded_are_named(
    tiny: GalaxiesSettings, prepared: Path, weights: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="20 x 20 px are smaller"):
        Galaxies().embed_query(tiny, prepared, weights, tmp_path / "small.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match="cannot be decoded"):
        Galaxies().embed_query(tiny, prepared, weights, str(tmp_path / "text.png"))
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "dark.png")
    other = tiny.model_copy(update={"model": tiny.model.model_copy(update={"name": "autoencoder", "args": {}})})
    with pytest.raises(CheckpointError, match="holds model 'invariant'"):
        Galaxies().embed_query(other, prepared, weights, tmp_path / "dark.png")
    assert np.isfinite(Galaxies().embed_query(tiny, prepared, weights, tmp_path / "dark.png")).all()
