"""Hyrax beside Manyscope: the same images, the same network, the same vectors, whole commands from the shell.

Both train the autoencoder of 337,091 parameters for two epochs on the same number of images and infer all of them.
Map, index and search then start, on both sides, from the vectors that Hyrax inferred.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.measure import (
    OURS,
    ROOT,
    WORK,
    Command,
    Row,
    bytes_in,
    compile_packages,
    cpu_seconds,
    environment,
    side_by_side,
)
from manyscope.latent.index import open_index
from manyscope.latent.neighbours import nearest_neighbours
from manyscope.latent.quality import map_quality
from manyscope.scopes.galaxies.settings import GalaxiesSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.parquet import read_table, write_table

PEER = "hyrax 0.13"
_REQUIREMENT = "hyrax==0.13.*"
_HOME = WORK / "hyrax"
_ENVIRONMENT = ROOT / ".venv-hyrax"

_TIMES = 3
_IMAGES = 10_000
_TRAINED, _VALIDATED = 8192, 904  # whole batches only, and a test split of the same size as the validation split
_BATCH = 256  # between the default of Hyrax, 512, and ours, 128
_EPOCHS = 2
_RATE = 1e-3
_K = 10
_QUERIES = 500
_JUDGED, _NEIGHBOURS = 2_000, 15  # objects and neighbours of trustworthiness
_SECONDS = "CPU s"
_VECTORS_ONLY = "benchmarks.images:vectors_only"

_OURS = {
    "scope": "galaxies",
    "download": {
        "source": "benchmarks.images:Images",
        "simulated": {"count": _IMAGES, "stamp_px": 32, "anomaly_fraction": 0.1},
    },
    "preprocess": {
        "stamp_px": 32,
        "transforms": [],
        "validation_fraction": _VALIDATED / _IMAGES,
        "test_fraction": _VALIDATED / _IMAGES,
    },
    "model": {"name": "autoencoder"},
    "train": {
        "epochs": _EPOCHS,
        "check_every_epochs": 1,  # Hyrax validates and writes a checkpoint after each epoch
        "batch_size": _BATCH,
        "optimizer": "adam",
        "lr": _RATE,
        "weight_decay": 0,
        "schedule": "constant",
        "warmup_fraction": 0,
        "tracker": "mlflow",  # as Hyrax does
    },
    "infer": {"batch_size": _BATCH},
}

_THEIRS = """
[general]
results_dir = "{results}"

[model]
name = "HyraxAutoencoder"

[train]
epochs = {epochs}

[optimizer]
name = "torch.optim.Adam"

["torch.optim.Adam"]
lr = {rate}

[data_loader]
batch_size = {batch}

[data_set]
seed = 1

[split]
train = {train}
validate = {validate}

[reduce_dimensions.umap]
fit_sample_size = {fitted}
"""
_GROUP = """
[data_request.{group}.data]
dataset_class = "benchmarks.hyrax_arrays.Arrays"
data_location = "{data}"
fields = ["image"]
primary_id_field = "object_id"
"""


def hyrax_environment() -> Path:
    """The folder of Hyrax's commands; the environment is made on first use, with our versions of what both use."""
    uv, python = OURS / "uv", _ENVIRONMENT / "bin" / "python"
    if not (_ENVIRONMENT / "ready").exists():
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", OURS / "python", _ENVIRONMENT], check=True)
        install: list[str | Path] = [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            "--constraint",
            ROOT / "requirements.lock",
        ]
        subprocess.run([*install, _REQUIREMENT], check=True)
        (_ENVIRONMENT / "ready").touch()
    compile_packages(python)
    return python.parent


class _Ours:
    """The stages of Manyscope, each a process of its own."""

    def __init__(self) -> None:
        self.env = environment(PYTHONPATH=ROOT)
        self.settings = GalaxiesSettings.model_validate(_OURS)
        self.results = _HOME / "ours"
        names = ("own", "vectors", "shared")
        self.own, self.vectors, self.shared = (ExperimentPaths.of(self.results, name) for name in names)

    def stage(self, name: str, experiment: str = "own", model: str | None = None) -> float:
        values = self.settings.stage_values(name)
        if model:
            values["model"]["name"] = model
        settings = json.dumps(values)
        command: list[str | Path] = [OURS / "manyscope", name, "--experiment", experiment, "--results", self.results]
        return cpu_seconds([*command, "--settings", settings], self.env, _HOME / "logs" / f"ours-{name}.log")

    def search(self, object_id: str) -> float:
        where: Command = ["--experiment", "shared", "--results", self.results, "--id", object_id, "-k", str(_K)]
        return cpu_seconds([OURS / "manyscope", "search", *where], self.env, _HOME / "logs" / "ours-search.log")


class _Theirs:
    """The verbs of Hyrax, each a process of its own."""

    def __init__(self, bin_folder: Path, data: Path) -> None:
        self.bin, self.results = bin_folder, _HOME / "hyrax"
        self.env = environment(PYTHONPATH=ROOT)
        self.config = self._write("hyrax.toml", data, 1024)
        self.config_all = self._write("hyrax-all.toml", data, _IMAGES)

    def _write(self, name: str, data: Path, fitted: int) -> Path:
        text = _THEIRS.format(
            results=self.results, epochs=_EPOCHS, rate=_RATE, batch=_BATCH, train=_TRAINED / _IMAGES,
            validate=_VALIDATED / _IMAGES, fitted=fitted,
        )  # fmt: skip
        text += "".join(_GROUP.format(group=group, data=data) for group in ("train", "validate", "infer"))
        path = _HOME / name
        path.write_text(text)
        return path

    def verb(self, name: str, *options: str | Path, config: Path | None = None) -> float:
        # `hyrax umap` hands its result to exit(), which makes it status 1.
        succeeded = (0, 1) if name == "umap" else (0,)
        command = [self.bin / "hyrax", name, "-c", config or self.config, *options]
        return cpu_seconds(command, self.env, _HOME / "logs" / f"hyrax-{name}.log", succeeded)

    def script(self, name: str, *options: str | Path) -> float:
        command = [self.bin / "python", "-m", "benchmarks.hyrax_scripts", name, *options]
        return cpu_seconds(command, self.env, _HOME / "logs" / f"hyrax-{name}.log")

    def latest(self, verb: str) -> Path:
        return max(self.results.glob(f"*-{verb}-*"), key=lambda folder: folder.stat().st_mtime)

    def exported(self, folder: Path) -> tuple[list[str], np.ndarray]:
        output = _HOME / "exported.npz"
        self.script("export", folder, output)
        with np.load(output) as stored:
            return stored["ids"].tolist(), stored["vectors"]


def run() -> list[Row]:
    hyrax = hyrax_environment()
    compile_packages(OURS / "python")
    shutil.rmtree(_HOME, ignore_errors=True)
    _HOME.mkdir(parents=True)
    ours = _Ours()
    ours.stage("download")
    ours.stage("preprocess")
    theirs = _Theirs(hyrax, ours.own.raw)

    rows, chain = [], {"ours": 0.0, "peer": 0.0}

    def compare(what: str, a: Callable[[], float], b: Callable[[], float], in_chain: bool = False) -> None:
        taken = side_by_side(_TIMES, ours=a, peer=b)
        rows.append(Row(what, taken["ours"], taken["peer"], PEER, _SECONDS))
        print(f"  {what}: {taken['ours']:.2f} beside {taken['peer']:.2f} {_SECONDS}", flush=True)
        for side in chain if in_chain else ():
            chain[side] += taken[side]

    compare(f"train {_EPOCHS} epochs", lambda: ours.stage("train"), lambda: theirs.verb("train"), True)
    _same_network(ours, theirs)
    compare("infer", lambda: ours.stage("infer"), lambda: theirs.verb("infer"), True)
    _without_reconstruction(ours)
    taken = side_by_side(_TIMES, ours=lambda: ours.stage("infer", "vectors", _VECTORS_ONLY))["ours"]
    rows.append(Row("infer, vectors only", taken, rows[-1].peer, PEER, _SECONDS))
    chain["ours"] += side_by_side(_TIMES, ours=lambda: ours.stage("gather"))["ours"]

    inferred = theirs.latest("infer")
    ids, vectors = theirs.exported(inferred)
    shared = pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": vectors})
    write_table(ours.shared.predictions, shared)
    write_table(ours.shared.samples, read_table(ours.own.samples))

    compare("umap", lambda: ours.stage("umap", "shared"), lambda: theirs.verb("umap", "-i", inferred), True)
    rows += _map_rows(ours, theirs, ids, vectors, "umap")
    whole = theirs.verb("umap", "-i", inferred, config=theirs.config_all)
    own = next(row.ours for row in rows if row.what == "umap")
    rows.append(Row("umap, all objects fitted", own, whole, PEER, _SECONDS))
    rows += _map_rows(ours, theirs, ids, vectors, "umap, all objects fitted")

    def insert() -> float:
        return theirs.verb("save_to_database", "-i", inferred)

    compare("index", lambda: ours.stage("index", "shared"), insert, True)
    database = theirs.latest("vector-db")
    rows += _index_rows(ours, theirs, database, vectors, ids)
    wanted = ids[len(ids) // 2]

    def script() -> float:
        return theirs.script("search", theirs.config, database, wanted, str(_K))

    def lookup() -> float:
        return theirs.verb("lookup", "-i", wanted, "-r", inferred)

    compare(f"search by id for {_K} neighbours", lambda: ours.search(wanted), script)
    compare("search by id, beside lookup of the vector alone", lambda: ours.search(wanted), lookup)
    rows.append(Row("the whole chain, ours with outlier scores", chain["ours"], chain["peer"], PEER, _SECONDS))
    return rows


def _same_network(ours: _Ours, theirs: _Theirs) -> None:
    """
    Raises:
        RuntimeError: the two sides did not train a network of the same size on as many images.
    """
    import torch

    own = torch.load(ours.own.model, weights_only=True)["state_dict"]
    peer = torch.load(next(theirs.latest("train").glob("*.pth")), weights_only=True)
    sizes = [sum(t.numel() for t in weights.values()) for weights in (own, peer)]
    if sizes[0] != sizes[1]:
        raise RuntimeError(f"networks of {sizes[0]} and {sizes[1]} parameters")
    samples = read_table(ours.own.samples)
    with np.load(theirs.latest("train") / "train_split.npz") as split:
        counts = [samples.filter(pl.col("split") == "train").height, len(split["indexes"])]
    if counts != [_TRAINED, _TRAINED]:
        raise RuntimeError(f"{counts[0]} and {counts[1]} training images")


def _without_reconstruction(ours: _Ours) -> None:
    """The same weights and images as an experiment whose model does not reconstruct, as Hyrax's inference does not."""
    import torch

    shutil.copytree(ours.own.prepared, ours.vectors.prepared)
    content = torch.load(ours.own.model, weights_only=True)
    content["model"]["name"] = _VECTORS_ONLY
    ours.vectors.train.mkdir()
    torch.save(content, ours.vectors.model)


def _map_rows(ours: _Ours, theirs: _Theirs, ids: list[str], vectors: np.ndarray, what: str) -> list[Row]:
    """What either map loses, on the same objects."""
    own = read_table(ours.shared.map)
    peer_ids, peer = theirs.exported(theirs.latest("umap"))
    if own["object_id"].to_list() != ids or peer_ids != ids:
        raise RuntimeError("a map holds other objects")
    maps = own.select("x", "y").to_numpy(), peer
    judged = [map_quality(vectors, m, objects=_JUDGED, neighbours=_NEIGHBOURS, seed=7) for m in maps]
    lost = [1 - (quality.trustworthiness or 0) for quality in judged]
    return [Row(f"{what}: 1 - trustworthiness", lost[0], lost[1], PEER, "1")]


def _index_rows(ours: _Ours, theirs: _Theirs, database: Path, vectors: np.ndarray, ids: list[str]) -> list[Row]:
    """Size on disk, and the share of the exact neighbours that either index misses."""
    random = np.random.default_rng(7)
    chosen = random.choice(len(vectors), _QUERIES, replace=False)
    disturbed = vectors[chosen] + 0.1 * vectors.std(0) * random.standard_normal((_QUERIES, vectors.shape[1]))
    queries = disturbed.astype(np.float32)
    np.save(_HOME / "queries.npy", queries)
    theirs.script("answers", theirs.config, database, _HOME / "queries.npy", _HOME / "answers.json", str(_K))
    with open_index(ours.shared.index) as index:
        own, _ = index.search(queries, _K)
    peer = json.loads((_HOME / "answers.json").read_text())
    _, exact = nearest_neighbours(vectors, _K, queries)
    names = np.array(ids)
    true = [set(names[row].tolist()) for row in exact]
    missed = [
        1 - np.mean([len(set(row) & want) / _K for row, want in zip(found, true, strict=True)]) for found in (own, peer)
    ]
    return [
        Row("index: 1 - recall@10", float(missed[0]), float(missed[1]), PEER, "1"),
        Row("index: size", bytes_in(ours.shared.index), bytes_in(database), PEER, "bytes"),
    ]
