"""Models as ONNX files: what onnxruntime says of them is what torch says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from manyscope.cli import main
from manyscope.errors import CheckpointError, ManyscopeError, MissingDependencyError
from manyscope.scopes.base import Scope
from manyscope.scopes.export import write_onnx
from manyscope.scopes.galaxies.data.stamps import StampData
from manyscope.scopes.galaxies.model import MODELS
from manyscope.scopes.galaxies.model.export import exportable
from manyscope.scopes.galaxies.scope import Galaxies
from manyscope.scopes.galaxies.settings import GalaxiesSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.stages import gather, infer
from manyscope.tables.manifest import file_digest
from manyscope.tables.predictions import read_predictions
from manyscope.training.checkpoints import save_weights
from manyscope.training.onnx import OnnxModel
from manyscope.training.onnx import export as export_module

SHARDS = 2


class Bare(nn.Module):
    """Somebody's network, in ten lines."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(shape[0], 5, 3), nn.BatchNorm2d(5), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((2, 3))


class Plain(Bare):
    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": self(batch["images"]).square().mean()}


class Counting(Plain):
    """Its batch size becomes a constant."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.zeros(len(images), 5)


class Deciding(Plain):
    """What it computes depends on values."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2 if images.mean() > 0 else 1)


class Random(Plain):
    """Says something else each time, so that no export can agree with it."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.rand_like(images).mean((2, 3))


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file as an importable module."""
    import sys

    monkeypatch.setitem(sys.modules, "somebody", sys.modules[Bare.__module__])


def settings_of(tiny: GalaxiesSettings, name: str, args: dict[str, Any], engine: str = "onnx") -> GalaxiesSettings:
    model = tiny.model.model_copy(update={"name": name, "args": args})
    chosen = tiny.infer.model_copy(update={"engine": engine, "batch_size": 50})
    return tiny.model_copy(update={"model": model, "infer": chosen})


def trained(settings: GalaxiesSettings, prepared: Path, results: Path) -> ExperimentPaths:
    """An experiment whose model has seen a few batches, so that its BatchNorm has something to remember."""
    paths = ExperimentPaths.of(results, "tiny")
    paths.root.mkdir(parents=True)
    paths.prepared.symlink_to(prepared)
    torch.manual_seed(0)
    data = StampData(prepared)
    model: Any = Galaxies().model(settings, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2) if list(model.parameters()) else None
    for first in (0, 32, 64):
        loss = model.losses(data.train_batch(range(first, first + 32)))["loss"]
        if optimizer is not None and loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_weights(paths.model, model, "galaxies", settings.model.model_dump(mode="json"))
    return paths


def predicted(settings: ExperimentSettings, paths: ExperimentPaths, shards: int = SHARDS) -> pl.DataFrame:
    for shard in range(shards):
        infer.run(settings.for_stage("infer"), paths, shard, shards)
    gather.run(settings.for_stage("gather"), paths, shards)
    return read_predictions(paths.predictions)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.sqrt(np.square(expected).mean()))


# ------------------------------------------------------------------------------------------------- equal to torch
CHAINS = [
    ("invariant", {"channels": 4, "latent": 16, "tied": 8}),
    ("autoencoder", {"channels": 4, "latent": 8}),
    ("cnn", {}),
    ("somebody:Bare", {}),
]


@pytest.mark.usefixtures("somebody")
@pytest.mark.parametrize(("name", "args"), CHAINS, ids=[name for name, _ in CHAINS])
def test_predictions_are_the_same_with_either_engine(
    tiny: GalaxiesSettings, prepared: Path, tmp_path: Path, name: str, args: dict[str, Any]
) -> None:
    paths = trained(settings_of(tiny, name, args), prepared, tmp_path)
    by_torch = predicted(settings_of(tiny, name, args, "torch"), paths)
    assert not paths.onnx.exists()
    by_onnx = predicted(settings_of(tiny, name, args), paths)
    written = file_digest(paths.onnx)
    assert by_onnx.columns == by_torch.columns
    assert by_onnx["object_id"].equals(by_torch["object_id"])
    for column in set(by_torch.columns) - {"object_id", "sample_id", "outlier_knn", "outlier_lof"}:
        if by_torch[column].dtype == pl.String:
            assert by_onnx[column].equals(by_torch[column])
        else:
            assert relative(by_onnx[column].to_numpy(), by_torch[column].to_numpy()) < 1e-4, column
    # Not torch by another name: the last digits tell.
    assert not by_onnx["embedding"].equals(by_torch["embedding"])
    # Another number of shards changes no digit, and the file is used as it is.
    assert predicted(settings_of(tiny, name, args), paths, 1).equals(by_onnx)
    assert file_digest(paths.onnx) == written


SMALL: dict[str, dict[str, Any]] = {
    "autoencoder_v2": {"channels": 4, "latent": 8, "final": "arcsinh"},
    "dcae": {"channels": 4, "latent": 8},
    "dcae_skip": {"channels": 4, "latent": 8},
    "features": {"latent": 4, "hidden": [8]},
    "hsc_autoencoder": {},
    "hsc_dcae": {},
    "identity": {},
    "simclr": {"width": 4},
}


def test_every_model_is_tried() -> None:
    # vicreg is the network of simclr with another loss, which no file holds.
    assert {*SMALL, *(name for name, _ in CHAINS if ":" not in name), "vicreg"} == set(MODELS.names())


@pytest.mark.parametrize("name", SMALL)
def test_every_model_can_be_exported(tiny: GalaxiesSettings, data: StampData, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    what = exportable(Galaxies().model(settings_of(tiny, name, SMALL[name]), data), data)
    report = export_module(what, tmp_path / "m.onnx", batches(data), {})
    assert report.keys() == set(what.outputs)
    assert all(measured["relative"] < 1e-5 for measured in report.values())
    assert report["latent"]["root_mean_square"] > 0


def batches(data: StampData) -> list[dict[str, Any]]:
    return [data.batch(np.arange(n)) for n in (8, 1, 7)]


# ------------------------------------------------------------------------------------------------- the file itself
@pytest.fixture
def paths(tiny: GalaxiesSettings, prepared: Path, tmp_path: Path, somebody: None) -> ExperimentPaths:
    """A trained network of somebody's."""
    return trained(settings_of(tiny, "somebody:Plain", {}), prepared, tmp_path)


def exported(tiny: GalaxiesSettings, paths: ExperimentPaths, file: Path | None = None, **how: Any) -> dict[str, Any]:
    settings = settings_of(tiny, "somebody:Plain", {}).for_stage("infer")
    return write_onnx(settings, Galaxies(), paths, file or paths.onnx, **how)


def test_somebody_else_can_use_the_file_alone(tiny: GalaxiesSettings, paths: ExperimentPaths, data: StampData) -> None:
    import onnxruntime

    exported(tiny, paths)
    session = onnxruntime.InferenceSession(str(paths.onnx), providers=["CPUExecutionProvider"])
    told = {key.removeprefix("manyscope."): value for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert told["experiment"] == "tiny"
    assert told["weights_sha256"] == file_digest(paths.model)
    assert json.loads(told["inputs"]) == ["images"]
    assert json.loads(told["bands"]) == data.bands
    crop, asinh = json.loads(told["transforms"])
    assert (crop["name"], asinh["name"]) == ("crop", "asinh")
    middle, half = data.stamps.shape[-1] // 2, crop["args"]["size_px"] // 2
    stamps = data.stamps[:5, :, middle - half : middle + half, middle - half : middle + half]
    images = np.arcsinh(stamps / asinh["args"]["softening"]) / asinh["args"]["scale"]
    (latent,) = session.run(json.loads(told["outputs"]), {"images": images.astype(np.float32)})
    model: Any = Galaxies().model(settings_of(tiny, "somebody:Plain", {}), data)
    model.load_state_dict(torch.load(paths.model, weights_only=True)["state_dict"])
    with torch.inference_mode():
        expected = model.eval()(data.batch(np.arange(5))["images"]).numpy()
    assert relative(latent, expected) < 1e-4


def test_the_file_is_valid_says_nothing_of_this_machine_and_is_the_same_again(
    tiny: GalaxiesSettings, paths: ExperimentPaths, tmp_path: Path
) -> None:
    report = exported(tiny, paths, opset=20)
    content = paths.onnx.read_bytes()
    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    for entry in (*proto.graph.input, *proto.graph.output):
        assert entry.type.tensor_type.shape.dim[0].dim_param == "samples"
    assert b".py" not in content
    assert str(Path.home()).encode() not in content
    assert exported(tiny, paths, tmp_path / "again.onnx", opset=20) == report
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert json.loads((tmp_path / "again.json").read_text()) == report
    assert report["batches"] == [64, 1, 7]
    assert report["file_sha256"] == file_digest(paths.onnx)


def test_a_file_of_other_weights_is_refused_and_replaced(tiny: GalaxiesSettings, paths: ExperimentPaths) -> None:
    exported(tiny, paths)
    before = paths.onnx.read_bytes()
    content = torch.load(paths.model, weights_only=True)
    content["state_dict"]["layers.0.bias"] += 1
    torch.save(content, paths.model)
    with pytest.raises(CheckpointError, match="holds another model: weights_sha256"):
        OnnxModel(paths.onnx).require({"weights_sha256": file_digest(paths.model)})
    by_onnx = predicted(settings_of(tiny, "somebody:Plain", {}), paths, 1)
    assert paths.onnx.read_bytes() != before
    by_torch = predicted(settings_of(tiny, "somebody:Plain", {}, "torch"), paths, 1)
    assert relative(by_onnx["embedding"].to_numpy(), by_torch["embedding"].to_numpy()) < 1e-4


def test_what_was_exported_with_less_care_is_not_used(tiny: GalaxiesSettings, paths: ExperimentPaths) -> None:
    assert exported(tiny, paths, tolerance=0.5)["tolerance"] == 0.5
    before = file_digest(paths.onnx)
    predicted(settings_of(tiny, "somebody:Plain", {}), paths, 1)
    assert file_digest(paths.onnx) != before
    assert json.loads(paths.onnx.with_suffix(".json").read_text())["tolerance"] == 1e-4


def test_a_broken_file_is_named_and_replaced(tiny: GalaxiesSettings, paths: ExperimentPaths) -> None:
    paths.onnx.parent.mkdir()
    paths.onnx.write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match=r"model\.onnx: not a model that onnxruntime can run"):
        OnnxModel(paths.onnx)
    assert len(predicted(settings_of(tiny, "somebody:Plain", {}), paths, 1)) == 240


# ------------------------------------------------------------------------------------------------- refusals
def nothing_is_left(folder: Path) -> bool:
    return not [file for file in folder.rglob("*") if "onnx" in file.name or file.suffix == ".json"]


def test_outputs_that_differ_are_an_error_and_leave_what_was_there(
    tiny: GalaxiesSettings, paths: ExperimentPaths
) -> None:
    exported(tiny, paths)
    before = {file: file.read_bytes() for file in paths.onnx.parent.iterdir()}
    with pytest.raises(ManyscopeError, match=r"'latent' of onnxruntime differs from torch's by .*allowed: 1e-12"):
        exported(tiny, paths, tolerance=1e-12)
    assert {file: file.read_bytes() for file in paths.onnx.parent.iterdir()} == before


class Broken(Bare):
    """Not a number, where an image is dark."""

    def forward(self, images: Tensor) -> Tensor:
        return (images.mean((2, 3)) - images.mean((2, 3))[0]).log()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Random, "differs from torch's by"),
        (Broken, "differs from torch's by nan"),
        (Counting, r"fixes the number of samples: input 'images' was exported for 8 only; take it from tensor\.shape"),
        (Deciding, r"cannot be exported \(GuardOnDataDependentSymNode: .* decisions that depend on values"),
    ],
)
def test_a_network_that_onnx_cannot_follow_is_refused(
    data: StampData, tmp_path: Path, capfd: pytest.CaptureFixture[str], network: type[Bare], message: str
) -> None:
    with pytest.raises(ManyscopeError, match=message):
        export_module(exportable(network(data.shape), data), tmp_path / "m.onnx", batches(data), {})
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_scope_without_it_says_so(tiny: GalaxiesSettings, paths: ExperimentPaths) -> None:
    class Without(Galaxies):
        name = "without"
        exportable = Scope.exportable

    settings = settings_of(tiny, "somebody:Plain", {}).for_stage("infer")
    with pytest.raises(
        ManyscopeError, match=r"scope 'without' cannot be exported to ONNX; leave infer\.engine at torch"
    ):
        write_onnx(settings, Without(), paths, paths.onnx)
    with pytest.raises(ManyscopeError, match=r"model\.pt: no name of a model"):
        write_onnx(settings, Galaxies(), paths, Path("model.pt"))


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_remedy(
    tiny: GalaxiesSettings, paths: ExperimentPaths, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"'{package}' is not installed; pip install 'manyscope\[onnx\]'"):
        predicted(settings_of(tiny, "somebody:Plain", {}), paths, 1)
    assert nothing_is_left(paths.root / "export")


def test_of_shards_that_start_together_one_exports(
    tiny: GalaxiesSettings, paths: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyscope.training import onnx as room

    calls, real = [], room.export
    monkeypatch.setattr(room, "export", lambda *args, **named: [calls.append(args[1]), real(*args, **named)][1])
    settings = settings_of(tiny, "somebody:Plain", {}).for_stage("infer")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda shard: infer.run(settings, paths, shard, 3), range(3)))
    assert calls == [paths.onnx]
    assert sum(len(read_predictions(paths.shard(shard))) for shard in range(3)) == 240


# ------------------------------------------------------------------------------------------------- the command
def test_the_command_writes_the_file_and_says_what_was_measured(
    tiny: GalaxiesSettings, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = trained(settings_of(tiny, "autoencoder", {"channels": 4, "latent": 8}), prepared, tmp_path / "results")
    (tmp_path / "config/experiments").mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("experiments: tiny\n")
    (tmp_path / "config/experiments/tiny.yaml").write_text(
        "scope: galaxies\nmodel: {name: autoencoder, args: {channels: 4, latent: 8}}\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["export", "--experiment", "tiny"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "results/tiny/export/model.onnx"
    assert [line.split()[0] for line in lines[1:]] == ["latent", "reconstruction"]
    assert set(json.loads((paths.onnx.parent / "model.json").read_text())["outputs"]) == {"latent", "reconstruction"}
    other = CliRunner().invoke(main, [*words, "--output", "mine.onnx", "--tolerance", "1e-12"])
    assert other.exit_code == 1
    assert "differs from torch's" in other.stderr
    assert not Path("mine.onnx").exists()
    wrong = CliRunner().invoke(main, [*words, "--set", "model.args.latent=9"])
    assert wrong.exit_code == CheckpointError.exit_code
    assert "run the stage train again" in wrong.stderr


def test_validate_knows_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config/experiments").mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("experiments: [sky, ice]\n")
    for name, scope in (("sky", "galaxies"), ("ice", "neutrinos")):
        (tmp_path / f"config/experiments/{name}.yaml").write_text(f"scope: {scope}\ninfer: {{engine: onnx}}\n")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["validate"])
    assert done.exit_code == 2
    assert [line for line in done.stderr.splitlines() if "infer.engine" in line] == [
        "error: ice: infer.engine: models of scope 'neutrinos' cannot be exported to ONNX; leave it at torch"
    ]
    assert "sky" not in done.stderr
    monkeypatch.setattr("manyscope.commands.validate.find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["validate", "sky"])
    assert "sky: infer.engine: not installed: onnx, onnxscript, onnxruntime; pip install" in done.stderr


# ------------------------------------------------------------------------------------------------- no code in results
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_nothing_in_a_results_folder_is_executed(
    tiny: GalaxiesSettings, paths: ExperimentPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.chdir(paths.train)
    mark = tmp_path / "executed"
    for name in ("model.py", "to_tensor.py", "prepare_inputs.py", "__init__.py", "conftest.py"):
        (paths.train / name).write_text(f"open({str(mark)!r}, 'w')\n")
    assert len(predicted(settings_of(tiny, "somebody:Plain", {}, engine), paths, 1)) == 240

    class Code:
        def __reduce__(self) -> tuple[Any, ...]:
            return mark.write_text, ("",)

    content = torch.load(paths.model, weights_only=True)
    torch.save({**content, "prepare_inputs": Code()}, paths.model)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        predicted(settings_of(tiny, "somebody:Plain", {}, engine), paths, 1)
    assert not mark.exists()
