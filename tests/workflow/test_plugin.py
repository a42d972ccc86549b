"""A scope of an outside package, as `manyscope new scope` writes it: its own tests, and the whole chain around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass

import pytest
from ruamel.yaml import YAML

from manyscope.commands.scaffold import write_scope
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import read_metrics
from manyscope.tables.predictions import embeddings, read_predictions
from workspace import REPOSITORY, Workspace, page_data

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("plugin")]

NAME, PACKAGE, OWN = "light-curves", "light_curves", "own_model"

# Written by a user who has never looked into the package.
OWN_MODEL = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, length, latent=5):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(length, latent), nn.Linear(latent, length)
    def forward(self, signals):
        return self.encoder(signals).tanh()
    def losses(self, batch):
        return {"loss": (self.decoder(self(batch["signals"])) - batch["signals"]).square().mean()}
"""
SMALL = """
download: {count: 300}
train: {batch_size: 50, tracker: none}
umap: {reducer: pca}
evaluate: {bootstrap_draws: 100}
"""


@dataclass
class PluginWorkspace(Workspace):
    """The generated package as a working folder, with itself importable and its entry points visible, as installed."""

    def environment(self) -> dict[str, str]:
        path = (self.folder / "src", self.folder.parent / "site", self.folder)
        return {**super().environment(), "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> PluginWorkspace:
    """What `pip install --editable` leaves behind, without pip: metadata with the entry points."""
    folder = write_scope(NAME, tmp_path_factory.mktemp("plugin"))
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    metadata = folder.parent / "site" / f"{PACKAGE}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {project['version']}\n")
    (metadata / "RECORD").write_text("")
    groups = project["entry-points"].items()
    text = "".join(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups)
    (metadata / "entry_points.txt").write_text(text)
    return PluginWorkspace(folder)


@pytest.fixture(scope="module")
def finished(package: PluginWorkspace) -> PluginWorkspace:
    """The package's experiment made small, and one with a model of the user's own, both through Snakemake."""
    experiments = package.folder / "config/experiments"
    with (experiments / f"{NAME}.yaml").open("a") as file:
        file.write(SMALL)
    (package.folder / "my_models.py").write_text(OWN_MODEL)
    own = f'scope: {NAME}\nmodel: {{name: "my_models:Tiny", args: {{latent: 3}}}}\n{SMALL}'
    (experiments / f"{OWN}.yaml").write_text(own)
    (package.folder / "config/config.yaml").write_text(f"experiments: [{NAME}, {OWN}]\n")
    package.snakemake(*where(package))
    return package


def where(workspace: Workspace) -> tuple[str, ...]:
    """As the package's README says."""
    return ("--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(workspace.folder))


def test_its_own_tests_pass(package: PluginWorkspace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=package.folder, env=package.environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout


@pytest.mark.parametrize("experiment", [NAME, OWN])
def test_the_whole_chain_runs(experiment: str, finished: PluginWorkspace) -> None:
    paths = ExperimentPaths.of(finished.results, experiment)
    assert json.loads(paths.audit.read_text())["count"] == 300
    predictions = read_predictions(paths.predictions)
    assert predictions["object_id"].n_unique() == 300
    assert embeddings(predictions).shape[1] == {NAME: 4, OWN: 3}[experiment]
    document, metrics = read_metrics(paths.metrics)
    assert (document["experiment"], document["scope"]) == (experiment, NAME)
    everything = next(metric for metric in metrics if metric.group == "all")
    assert everything.baseline == "pca"
    assert everything.low > 1 / 3  # three classes
    page = paths.page.read_text(encoding="utf-8")
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert "signal-000299" in page_data(paths.page)["ids"]
    assert (finished.results / "index.html").is_file()


def test_its_defaults_lie_under_the_users_settings(finished: PluginWorkspace) -> None:
    yaml = YAML(typ="safe")
    defaults = yaml.load(finished.folder / "src" / PACKAGE / "defaults.yaml")
    ran_with = yaml.load(ExperimentPaths.of(finished.results, NAME).settings)
    assert ran_with["train"]["epochs"] == defaults["train"]["epochs"] != 10  # not Manyscope's own
    assert ran_with["train"]["lr"] == pytest.approx(float(defaults["train"]["lr"]))
    assert ran_with["train"]["batch_size"] == 50 != defaults["train"]["batch_size"]


def test_a_changed_file_of_the_user_reruns_what_it_is_used_in(finished: PluginWorkspace) -> None:
    assert finished.rules_to_run(*where(finished)) == set()
    model, judge = finished.folder / "my_models.py", finished.folder / "src" / PACKAGE / "evaluate.py"
    after_train = {"infer", "gather", "umap", "index", "evaluate", "explore", "summary"}
    for file, rules in ((model, {"train", *after_train}), (judge, {"evaluate", "summary"})):
        text = file.read_text()
        file.write_text(f"{text}\nCHANGED = 1\n")
        assert finished.rules_to_run(*where(finished)) == rules, file.name
        file.write_text(text)


def test_a_new_experiment_of_the_scope_is_valid(package: PluginWorkspace) -> None:
    package.manyscope("new", "experiment", "fresh", "--scope", NAME)
    text = (package.folder / "config/experiments/fresh.yaml").read_text()
    assert "  # epochs: 60 " in text  # of the package's defaults.yaml
    assert "1 experiment(s) valid: fresh" in package.manyscope("validate", "fresh").stdout
    failed = package.manyscope("validate", "fresh", "--set", "fresh.model.name=autoencode", check=False)
    assert failed.returncode == 2
    assert "did you mean 'autoencoder'" in failed.stderr
