"""extend: new samples join, old ones stay, and whatever interrupts it, the end is the same."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manyscope.commands import extension
from manyscope.errors import DataError
from manyscope.latent.index import open_index
from manyscope.scopes.registry import find_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.stages import download, gather, index, infer, preprocess, umap
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples

SHARDS = 3
# A catalog of "name value" lines; sample number n has n % 3 objects. What is fetched and predicted is noted.
SCOPE = """
from pathlib import Path

import numpy as np
import polars as pl

from manyscope.data.splits import split_by_hash
from manyscope.scopes.base import Scope
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.manifest import ManifestEntry
from manyscope.tables.predictions import Objects
from manyscope.tables.whole import whole_file

HERE = Path(__file__).parent


def note(what, name):
    with (HERE / f"{what}.txt").open("a") as file:
        file.write(name + chr(10))


class Growing(Scope):
    name = "growing"
    Settings = ExperimentSettings
    data = evaluate = model = predict_batch = None

    def download(self, settings, raw):
        for line in (HERE / "catalog.txt").read_text().splitlines():
            name, value = line.split()
            file = raw / f"{name}.txt"
            if not file.exists():
                note("fetched", name)
                with whole_file(file) as partial:
                    partial.write_text(value)
            yield ManifestEntry(file.name, "catalog")

    def preprocess(self, settings, raw, manifest, prepared):
        names = [path.removesuffix(".txt") for path in manifest["path"]]
        values = np.array([float((raw / f"{name}.txt").read_text()) for name in names])
        if (HERE / "normalise").exists():
            values -= values.mean()
        pl.DataFrame({"name": names, "value": values}).write_parquet(prepared / "values.parquet")
        split = split_by_hash(names, settings.preprocess.split_seed, 0.2, 0.2)
        return pl.DataFrame({"sample_id": names, "group": names, "split": split, "value": values})

    def predict(self, settings, prepared, weights, sample_ids, files):
        value = dict(pl.read_parquet(prepared / "values.parquet").iter_rows())
        scale = float(weights.read_text())
        for name in sample_ids:
            note("predicted", name)
            count = int(name[1:]) % 3
            vectors = np.array([[value[name], i, scale] for i in range(count)], np.float32).reshape(count, 3)
            yield Objects([name], [name] * count, [f"{name}/{i}" for i in range(count)], vectors,
                          {"area": np.full(count, value[name])})
"""


class World:
    """A catalog, the experiment that reads it, and its stages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = ExperimentPaths.of(folder / "results", "tiny")

    def catalog(self, names: list[int], **changed: float) -> None:
        random = np.random.default_rng(0).normal(size=1000)
        lines = [f"s{n:03d} {changed.get(f's{n:03d}', random[n]):.6f}" for n in names]
        (self.folder / "catalog.txt").write_text("\n".join(lines))

    def settings(self, **sections: Any) -> ExperimentSettings:
        values = {
            "scope": "growing_scope:Growing", "model": {"name": "none"}, "umap": {"reducer": "pca"},
            "index": {"store": "exact", "audit_queries": 20}, **sections,
        }  # fmt: skip
        return ExperimentSettings.model_validate(values)

    def chain(self, paths: ExperimentPaths | None = None, **sections: Any) -> None:
        """Everything but the training."""
        paths, settings = paths or self.paths, self.settings(**sections)
        download.run(settings.for_stage("download"), paths)
        preprocess.run(settings.for_stage("preprocess"), paths)
        paths.train.mkdir(exist_ok=True)
        paths.model.write_text("0.5")
        for shard in range(SHARDS):
            infer.run(settings.for_stage("infer"), paths, shard, SHARDS)
        gather.run(settings.for_stage("gather"), paths, SHARDS)
        umap.run(settings.for_stage("umap"), paths)
        index.run(settings.for_stage("index"), paths)

    def extend(self, **sections: Any) -> None:
        extension.run(self.settings(**sections), self.paths, SHARDS)

    def noted(self, what: str) -> list[str]:
        """What was fetched or predicted since this was asked last."""
        file = self.folder / f"{what}.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The chain of 60 samples, to be copied."""
    world = World(tmp_path_factory.mktemp("made"))
    (world.folder / "growing_scope.py").write_text(SCOPE)
    world.catalog(list(range(10, 70)))
    with pytest.MonkeyPatch.context() as patch:
        here(world, patch)
        world.chain()
    for what in ("fetched", "predicted"):
        world.noted(what)
    return world


def here(world: World, patch: pytest.MonkeyPatch) -> None:
    """Let the scope be the one in this folder."""
    patch.syspath_prepend(world.folder)
    patch.delitem(sys.modules, "growing_scope", raising=False)
    find_scope.cache_clear()


@pytest.fixture
def world(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    shutil.copytree(made.folder, tmp_path / "world")
    world = World(tmp_path / "world")
    here(world, monkeypatch)
    return world


GROWN = [*range(5, 10), *range(10, 70), *range(70, 90)]  # before, among and behind the old ones in the table


def content(paths: ExperimentPaths) -> dict[str, Any]:
    """All that must be the same however it was made; times and latencies are not."""
    predictions = read_predictions(paths.predictions)
    with open_index(paths.index) as opened:
        stored = opened.vectors(predictions["object_id"].to_list()).tobytes()
        count = opened.count
    return {
        "manifest": paths.manifest.read_bytes(), "samples": paths.samples.read_bytes(),
        "shards": [read_predictions(paths.shard(i)).to_dict(as_series=False) for i in range(SHARDS)],
        "predictions": paths.predictions.read_bytes(), "index": (count, stored),
        "mapped": pl.read_parquet(paths.map)["object_id"].to_list(),
    }  # fmt: skip


def test_the_result_is_that_of_a_full_rebuild(world: World) -> None:
    before, reducer = pl.read_parquet(world.paths.map), world.paths.reducer.read_bytes()
    world.catalog(GROWN)
    world.extend()
    new = [f"s{n:03d}" for n in GROWN if not 10 <= n < 70]
    assert world.noted("fetched") == new
    predicted = world.noted("predicted")
    # Old ones only to see that they are what they were, each once.
    assert sorted(set(predicted[: -len(new)])) == [f"s{n:03d}" for n in range(10, 70)]
    assert sorted(predicted[-len(new) :]) == sorted(new)

    rebuilt = ExperimentPaths.of(world.folder / "rebuilt", "tiny")
    world.chain(rebuilt)
    assert content(world.paths) == content(rebuilt)
    after = pl.read_parquet(world.paths.map)
    assert after.join(before, on="object_id", how="semi").equals(before)
    assert after.drop_nulls().height == after.height > before.height
    assert world.paths.reducer.read_bytes() == reducer
    audit = json.loads(world.paths.audit.read_text())
    assert audit["count"] == after.height
    assert json.loads(world.paths.map_quality.read_text())["objects"] == after.height
    assert not (world.paths.root / ".extend").exists()


@pytest.mark.parametrize(("reducer", "components"), [("umap", 2), ("tsne", 3)])
def test_every_reducer_puts_new_objects_on_its_map(world: World, reducer: str, components: int) -> None:
    section = {"reducer": reducer, "components": components, "perplexity": 5}
    world.chain(umap=section)
    before = pl.read_parquet(world.paths.map)
    world.catalog(GROWN)
    world.extend(umap=section)
    after = pl.read_parquet(world.paths.map)
    assert after.columns == ["object_id", *"xyz"[:components]]
    assert after.join(before, on="object_id", how="semi").equals(before)
    assert after["object_id"].equals(read_predictions(world.paths.predictions)["object_id"])


def test_a_second_time_there_is_nothing_to_do(world: World) -> None:
    world.catalog(GROWN)
    world.extend()
    times = {p: p.stat().st_mtime_ns for p in world.paths.root.rglob("*") if p.is_file()}
    world.noted("predicted")
    time.sleep(0.01)
    world.extend()
    assert world.noted("predicted") == []
    assert {p: p.stat().st_mtime_ns for p in world.paths.root.rglob("*") if p.is_file()} == times
    world.catalog([*GROWN, 100])
    world.extend()
    assert "s100/0" in read_predictions(world.paths.predictions)["object_id"]


def test_no_file_of_the_chain_is_newer_than_what_is_made_of_it(world: World) -> None:
    paths = world.paths
    for file in (paths.history, paths.settings, paths.run):
        file.write_text("as trained")
    jobs = ["download", "preprocess", "train", *(f"infer-{i:02d}" for i in range(SHARDS)), "gather", "umap", "index"]
    for job in jobs:
        paths.benchmark(job).parent.mkdir(exist_ok=True)
        paths.benchmark(job).write_text("{}")
    by_training = (paths.model, paths.history, paths.settings, paths.run, paths.benchmark("train"))
    times = {file: file.stat().st_mtime_ns for file in by_training}
    world.catalog(GROWN)
    world.extend()
    assert {file: file.stat().st_mtime_ns for file in times} == times  # or what starts from them would train again
    shards = [paths.shard(i) for i in range(SHARDS)]
    trained = [paths.model, paths.history, paths.settings, paths.run]
    mapped = [paths.map, paths.reducer, paths.map_quality, paths.map_figure]
    chain = [[paths.manifest], [paths.samples], trained, shards, [paths.predictions], mapped]
    counted = [jobs[:1], jobs[1:2], jobs[2:3], jobs[3:-3], jobs[-3:-2], jobs[-2:-1]]
    steps = [
        [file.stat().st_mtime_ns for file in [*step, *map(paths.benchmark, names)]]
        for step, names in zip(chain, counted, strict=True)
    ]
    for earlier, later in itertools.pairwise(steps):
        assert max(earlier) <= min(later)
    assert min(paths.audit.stat().st_mtime_ns, paths.benchmark("index").stat().st_mtime_ns) >= max(steps[4])


class KilledError(BaseException):
    """Passes every handler of errors, as a signal does."""


STEPS = [
    (preprocess, "run", 1), (extension, "_check_old", 1), (extension, "write_table", 1), (extension, "whole_folder", 1),
    (extension, "_complete", 1), (extension, "_extend_shard", 1), (extension, "_extend_shard", 3), (gather, "run", 1),
    (extension, "_extend_map", 1), (index, "extend", 1), (extension, "_touch", 2), (extension, "_touch", 4),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "call"), STEPS)
def test_interrupted_anywhere_it_ends_the_same(world: World, module: Any, name: str, call: int) -> None:
    before = pl.read_parquet(world.paths.map)
    world.catalog(GROWN)
    original, calls = getattr(module, name), []

    def killed(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            raise KilledError
        return original(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KilledError):
            world.extend()
    world.catalog([*GROWN, 100])  # and the catalog has grown in the meantime
    world.extend()
    rebuilt = ExperimentPaths.of(world.folder / "rebuilt", "tiny")
    world.chain(rebuilt)
    assert content(world.paths) == content(rebuilt)
    assert pl.read_parquet(world.paths.map).join(before, on="object_id", how="semi").equals(before)
    assert not (world.paths.root / ".extend").exists()
    assert not [*world.paths.root.rglob("*.partial"), *world.paths.root.rglob("*.old")]


@pytest.mark.parametrize("folder", ["prepared", "umap", "index"])
def test_killed_between_moving_a_folder_aside_and_its_successor_in(world: World, folder: str) -> None:
    world.catalog(GROWN)
    rename, put = Path.rename, world.paths.root / folder

    def killed(path: Path, target: Path) -> Path:
        if Path(target) == put:
            raise KilledError
        return rename(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KilledError):
            world.extend()
    assert not put.exists()
    world.extend()
    rebuilt = ExperimentPaths.of(world.folder / "rebuilt", "tiny")
    world.chain(rebuilt)
    assert content(world.paths) == content(rebuilt)
    assert not (world.paths.root / ".extend").exists()


def test_an_interrupted_extension_is_not_finished_by_other_weights(world: World) -> None:
    """Otherwise rows of the old weights would stand beside rows of the new ones."""
    world.catalog(GROWN)
    extend_shard, calls = extension._extend_shard, []

    def killed(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise KilledError
        extend_shard(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extension, "_extend_shard", killed)
        with pytest.raises(KilledError):
            world.extend()
    world.paths.model.write_text("0.7")  # the chain has trained on all samples, and was ended then
    world.catalog([*GROWN, 100])
    shards = [world.paths.shard(i).read_bytes() for i in range(SHARDS)]
    with pytest.raises(DataError, match="run the chain"):
        world.extend()
    assert [world.paths.shard(i).read_bytes() for i in range(SHARDS)] == shards
    world.chain()
    world.catalog([*GROWN, 100, 101])
    world.extend()
    assert "s101/0" in read_predictions(world.paths.predictions)["object_id"]
    assert not (world.paths.root / ".extend").exists()


def refused(world: World, words: str, **sections: Any) -> None:
    """The extension fails, and nothing but the raw data has changed."""
    kept = {p: p.read_bytes() for p in world.paths.root.rglob("*") if p.is_file() and "raw" not in p.parts}
    with pytest.raises(DataError, match=words) as caught:
        world.extend(**sections)
    assert "\n" not in str(caught.value)
    for file, text in kept.items():
        assert file.read_bytes() == text, file


def test_an_old_sample_that_is_gone_or_moved_is_refused(world: World) -> None:
    world.catalog(GROWN[10:])
    refused(world, "5 of 60 samples have changed: group of 's010' was 's010' and is now gone")
    world.catalog(GROWN)
    refused(world, "split of 's0.*run the chain", preprocess={"split_seed": 7})


def test_an_old_sample_with_other_content_is_refused(world: World) -> None:
    world.catalog(GROWN, s050=9.0)
    (world.paths.raw / "s050.txt").unlink()  # so that it is fetched again
    refused(world, "of 60 old samples that were predicted again, some give other embeddings")


def test_a_normalisation_over_all_samples_is_refused(world: World) -> None:
    (world.folder / "normalise").touch()
    world.chain()
    world.catalog(GROWN, s080=40.0)
    refused(world, "some give other embeddings")


def test_other_weights_are_refused(world: World) -> None:
    world.paths.model.write_text("0.7")
    world.catalog(GROWN)
    refused(world, "some give other embeddings")


def test_another_number_of_shards_is_refused(world: World) -> None:
    world.catalog(GROWN)
    with pytest.raises(DataError, match="does not hold the samples that belong to it; run the chain"):
        extension.run(world.settings(), world.paths, SHARDS - 1)


def test_a_map_of_other_dimensions_or_of_another_reducer_is_refused(world: World) -> None:
    world.catalog(GROWN)
    words = "columns object_id, x, y; allowed: object_id, x, y, z; run the stage umap"
    refused(world, words, umap={"reducer": "pca", "components": 3})
    refused(world, "holds the reducer Pca; allowed: Umap", umap={"reducer": "umap"})


@pytest.mark.parametrize("name", ["map", "audit"])
def test_a_chain_that_stopped_half_way_is_not_extended(world: World, name: str) -> None:
    """The map and the index of other predictions than those that are there."""
    world.catalog(GROWN)
    before = world.paths.predictions.stat().st_mtime_ns - 1
    os.utime(getattr(world.paths, name), ns=(before, before))
    refused(world, "older than predictions.parquet; run the chain first, with --forcerun umap index where")


def test_without_a_finished_chain_there_is_nothing_to_extend(world: World) -> None:
    world.paths.map.unlink()
    with pytest.raises(DataError, match="run the chain first"):
        world.extend()


def test_new_samples_of_splits_that_are_not_embedded_are_left_out(world: World) -> None:
    world.chain(infer={"splits": ["test"]})
    world.catalog(GROWN)
    world.extend(infer={"splits": ["test"]})
    samples, predictions = read_samples(world.paths.samples), read_predictions(world.paths.predictions)
    tested = samples.filter(pl.col("split") == "test")["sample_id"]
    assert predictions["sample_id"].is_in(tested.implode()).all()
    assert len(samples) == len(GROWN)
    assert np.isfinite(embeddings(predictions)).all()


def test_old_samples_that_have_no_object_are_alike(world: World) -> None:
    world.catalog([n for n in range(12, 200) if n % 3 == 0])  # and so has none of the old ones
    with pytest.raises(DataError, match="no sample has any object"):
        world.chain(ExperimentPaths.of(world.folder / "empty", "tiny"))
    assert extension._alike(np.empty((0, 1)), np.empty((0, 3)))
    assert not extension._alike(np.empty((0, 3)), np.ones((1, 3)))
    assert not extension._alike(np.ones((1, 2)), np.ones((1, 3)))
