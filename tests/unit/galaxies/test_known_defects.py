"""Mistakes that programs of this kind are known for, as far as no other file tests for them; and the table in
docs/galaxies.md of those that do."""

from __future__ import annotations

import gc
import json
import re
import tracemalloc
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from manyscope.cli import main
from manyscope.data.prepared import PreparedSamples
from manyscope.data.splits import split_by_hash
from manyscope.scopes.galaxies.data.sources import SOURCES
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.model import build_model
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesModel, GalaxiesSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ModelSettings, TrainSettings
from manyscope.stages import umap
from manyscope.tables.lookup import look_up
from manyscope.tables.parquet import write_table
from manyscope.training import checkpoints
from manyscope.training.fit import fit
from manyscope.training.run import TrainingRun

REPOSITORY = Path(__file__).resolve().parents[3]
TESTED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


# ------------------------------------------------------------------------------------------------- data
@given(groups=st.lists(st.text(max_size=4), min_size=1, max_size=30, unique=True), data=st.data())
def test_a_split_does_not_depend_on_the_order_of_the_rows(groups: list[str], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(groups))))
    split = split_by_hash(groups, 0, 0.2, 0.3)
    assert split_by_hash([groups[i] for i in order], 0, 0.2, 0.3).tolist() == split[list(order)].tolist()


@hypothesis_settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(0, 239), max_size=40))
def test_any_order_of_ids_with_any_repeats_gives_what_was_asked_for(data: StampData, rows: list[int]) -> None:
    ids = [f"sim-{row:06d}" for row in rows]
    found = data.rows_of(ids)
    assert data.ids(found) == ids
    if rows:
        batch = data.batch(found)
        assert batch["sample_id"] == ids
        np.testing.assert_array_equal(batch["stamps"].numpy(), data.stamps[rows])


class Many(PreparedSamples):
    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        return {"sample_id": self.ids(rows)}


def test_the_names_of_a_batch_are_found_without_those_of_all_others(tmp_path: Path) -> None:
    ids = [f"object-{i}" for i in range(50_000)]
    write_table(
        tmp_path / "samples.parquet", pl.DataFrame({"sample_id": ids, "group": ids, "split": ["train"] * 50_000})
    )
    data = Many(tmp_path)
    rows = np.array([49_999, 3])
    tracemalloc.start()
    try:
        assert data.batch(rows)["sample_id"] == ["object-49999", "object-3"]
        assert tracemalloc.get_traced_memory()[1] < 50_000  # bytes; a list of all ids takes millions
    finally:
        tracemalloc.stop()


def test_batches_are_let_go(data: StampData) -> None:
    assert isinstance(data.stamps.base, np.memmap)
    seen = [weakref.ref(batch["images"]) for batch in data.predict_batches(data.samples["sample_id"].to_list(), 40)]
    gc.collect()
    assert len(seen) == 6
    assert not any(reference() is not None for reference in seen)


def test_every_setting_of_every_source_has_a_default() -> None:
    for name in SOURCES.names():
        settings = GalaxiesSettings.model_validate({"scope": "galaxies", "download": {"source": name}})
        assert all(isinstance(problem, str) for problem in Galaxies().problems(settings))


# ------------------------------------------------------------------------------------------------- models
class _Counting(TorchDispatchMode):
    """How many operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "args"), [("simclr", {"width": 4}), ("invariant", {"channels": 4, "latent": 16, "tied": 8})]
)
def test_views_of_a_batch_are_made_all_at_once(data: StampData, name: str, args: dict[str, Any]) -> None:
    model: Any = build_model(GalaxiesModel(name=name, args=args), data)
    counts = []
    for samples in (6, 24):
        torch.manual_seed(0)
        with _Counting() as counting:
            model.losses(data.batch(np.arange(samples)))
        counts.append(counting.operators)
    assert counts[0] == counts[1] > 0


class Drifting(nn.Module):
    """Trains away from what is best for the samples held back."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": -self.level if self.training else self.level}


class Measuring(Drifting):
    """Its loss is the mean of the images."""

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": batch["images"].mean() + 0 * self.level}


def test_the_validation_loss_is_the_mean_over_all_validation_samples(data: StampData, tmp_path: Path) -> None:
    train = TrainSettings(epochs=1, batch_size=20, tracker="none")
    settings = ExperimentSettings(scope="galaxies", model=ModelSettings(name="measuring"), train=train)
    run = TrainingRun(settings.for_stage("train"), ExperimentPaths.of(tmp_path, "e"), "data", "code", {})
    fit(data, Measuring(), train, run)
    found = run.history.filter(pl.col("name") == "validation/loss")["value"].item()
    rows = data.rows("validation")
    assert len(rows) % 20  # the last batch is smaller, and must count for less
    assert found == pytest.approx(data.images(rows).mean(), rel=1e-5)
    assert found != pytest.approx(data.images(rows[-(len(rows) % 20) :]).mean(), rel=1e-5)


def test_the_best_weights_and_not_the_last_ones_are_kept(data: StampData, tmp_path: Path) -> None:
    train = TrainSettings(epochs=4, batch_size=50, lr=0.1, schedule="constant", warmup_fraction=0, tracker="none")
    settings = ExperimentSettings(scope="galaxies", model=ModelSettings(name="drifting"), train=train)
    run = TrainingRun(settings.for_stage("train"), ExperimentPaths.of(tmp_path, "e"), "data", "code", {})
    network = Drifting()
    fit(data, network, train, run)
    first, last = checkpoints.load(run.best)["state_dict"]["level"], network.level.detach()
    assert 0 < float(first) < 0.5 * float(last)


class Watching(nn.Module):
    """Remembers how it is called."""

    calls: ClassVar[list[tuple[bool, bool]]] = []

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 2)

    def forward(self, images: Tensor) -> Tensor:
        latent = self.layer(images.mean((1, 2, 3))[:, None])
        self.calls.append((self.training, latent.requires_grad))
        return latent

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": self(batch["images"]).mean()}


def test_predictions_are_made_in_eval_mode_without_gradients(
    tiny: GalaxiesSettings, prepared: Path, data: StampData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "somebody", sys.modules[Watching.__module__])
    model = GalaxiesModel(name="somebody:Watching")
    checkpoints.save_weights(tmp_path / "model.ckpt", Watching(data.shape), "galaxies", model.model_dump(mode="json"))
    Watching.calls.clear()
    ids = data.samples["sample_id"].to_list()[:5]
    settings = tiny.model_copy(update={"model": model})
    list(Galaxies().predict(settings, prepared, tmp_path / "model.ckpt", ids, tmp_path / "files"))
    assert Watching.calls == [(False, False)]


# ------------------------------------------------------------------------------------------------- the latent space
class Slices:
    """A reducer that counts how often it is asked."""

    asked: ClassVar[list[int]] = []

    def __init__(self, settings: Any) -> None:
        pass

    def fit(self, vectors: np.ndarray) -> np.ndarray:
        self.asked.append(len(vectors))
        return vectors[:, :2]

    transform = fit

    def save(self, path: Path) -> None:
        path.write_bytes(b"")


def test_the_map_is_made_of_all_vectors_at_once(latent_tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "somebody", sys.modules[Slices.__module__])
    paths = latent_tables(120, one_each=True)
    section = {"reducer": "somebody:Slices", "fit_objects": 50, "quality_objects": 50}
    settings = ExperimentSettings.model_validate(
        {"scope": "galaxies", "model": ModelSettings(name="none"), "umap": section}
    )
    Slices.asked.clear()
    umap.run(settings.for_stage("umap"), paths)
    assert Slices.asked == [50, 70]


def test_a_stage_that_succeeds_exits_with_zero(latent_tables: Any) -> None:
    paths = latent_tables(60, one_each=True)
    values = {"scope": "galaxies", "umap": {"reducer": "pca", "quality_objects": 50}}
    words = ["umap", "--experiment", paths.experiment, "--results", str(paths.root.parent)]
    done = CliRunner().invoke(main, [*words, "--settings", json.dumps(values)])
    assert done.exit_code == 0, done.output
    assert paths.map.exists()


def test_looking_up_an_object_does_not_read_the_ids_of_all(latent_tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = latent_tables(120, one_each=True)
    name = look_up(paths.predictions, "object_id", "s0007/0")["object_id"].item()

    def refuse(*_: Any) -> None:
        raise AssertionError("all ids were read")

    monkeypatch.setattr("manyscope.tables.lookup.read_column", refuse)
    assert name == look_up(paths.predictions, "object_id", "s0007/0")["object_id"].item() == "s0007/0"
    assert look_up(paths.predictions, "object_id", "s0119/0")["sample_id"].item() == "s0119"


# ------------------------------------------------------------------------------------------------- the table
def named_tests() -> list[tuple[str, str]]:
    return TESTED.findall((REPOSITORY / "docs/galaxies.md").read_text(encoding="utf-8"))


def test_tests_that_the_documentation_names_exist() -> None:
    named = named_tests()
    assert len(named) > 40
    for file, name in named:
        path = REPOSITORY / file
        assert path.is_file(), file
        assert re.search(rf"^(async )?def {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{name}"
