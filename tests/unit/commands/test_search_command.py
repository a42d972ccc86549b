"""`manyscope search`: neighbours as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result

from manyscope.cli import main
from manyscope.settings import load_experiment
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.freshness import confirm
from manyscope.tables.parquet import write_table

OBJECTS, DIMENSIONS = 60, 5
VECTORS = np.random.default_rng(0).normal(size=(OBJECTS, DIMENSIONS)).astype(np.float32)
IDS = [f"object {number:02d}" for number in range(OBJECTS)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment `one` with samples, predictions and an index."""
    from manyscope.stages.index import run

    folder = tmp_path_factory.mktemp("search")
    paths = ExperimentPaths.of(folder, "one")
    splits = ["train", "validation", "test"] * (OBJECTS // 3)
    write_table(paths.samples, pl.DataFrame({"sample_id": IDS, "group": IDS, "split": splits, "size": range(OBJECTS)}))
    predictions = {"object_id": IDS, "sample_id": IDS, "embedding": VECTORS, "score": np.arange(OBJECTS) / 10}
    write_table(paths.predictions, pl.DataFrame(predictions))
    run(ExperimentSettings(scope="galaxies", model={"name": "any"}).for_stage("index"), paths)
    return folder


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def search(results: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["search", "--experiment", "one", "--results", str(results), *arguments])


def rows(results: Path, *arguments: str) -> list[dict[str, Any]]:
    done = search(results, "--json", *arguments)
    assert done.exit_code == 0, done.output
    answer: list[dict[str, Any]] = json.loads(done.output)
    return answer


def exact(query: np.ndarray, without: int | None = None) -> tuple[list[str], np.ndarray]:
    distance = ((VECTORS - query) ** 2).sum(1)
    if without is not None:
        distance[without] = np.inf
    order = np.argsort(distance)
    return [IDS[row] for row in order], distance[order]


def test_neighbours_of_an_object(results: Path) -> None:
    found = rows(results, "--id", IDS[7], "-k", "6")
    ids, distances = exact(VECTORS[7], without=7)
    assert [row["object_id"] for row in found] == ids[:6]
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([row["distance"] for row in found], distances[:6], rtol=1e-4)


def test_an_answer_says_what_is_known_of_the_objects(results: Path) -> None:
    nearest = rows(results, "--id", IDS[7], "-k", "1")[0]
    number = IDS.index(nearest["object_id"])
    assert nearest["size"] == number
    assert nearest["score"] == pytest.approx(number / 10)
    assert nearest["split"] == ["train", "validation", "test"][number % 3]
    assert "embedding" not in nearest


def test_ten_neighbours_unless_told(results: Path) -> None:
    assert len(rows(results, "--id", IDS[0])) == 10


def test_neighbours_of_a_vector(results: Path, project: Path) -> None:
    for kind in (np.float32, np.float64):
        query = (VECTORS[3] + 0.01).astype(kind)
        np.save(project / "v.npy", query)
        found = rows(results, "--vector", "v.npy", "-k", "3")
        assert [row["object_id"] for row in found] == exact(query)[0][:3]
        assert found[0]["object_id"] == IDS[3]


def test_several_queries_and_filters(results: Path, project: Path) -> None:
    found = rows(results, "--id", IDS[7], "--id", IDS[2], "-k", "4", "--where", "size >= 10", "--where", "score < 5")
    for query in (7, 2):
        nearest = [name for name in exact(VECTORS[query], without=query)[0] if 10 <= int(name[-2:]) < 50]
        assert [row["object_id"] for row in found if row["query"] == IDS[query]] == nearest[:4]
    np.save(project / "v.npy", VECTORS[[4, 9]])
    found = rows(results, "--vector", "v.npy", "-k", "1")
    assert [(row["query"], row["object_id"]) for row in found] == [(0, IDS[4]), (1, IDS[9])]
    assert rows(results, "--id", IDS[7], "--where", "split = 'unlabelled'") == []


def test_an_index_that_was_moved_aside_is_put_back(results: Path) -> None:
    paths = ExperimentPaths.of(results, "one")
    paths.index.rename(paths.root / ".index.old")
    assert len(rows(results, "--id", IDS[0])) == 10
    assert not (paths.root / ".index.old").exists()


def test_table_for_people(results: Path) -> None:
    done = search(results, "--id", IDS[7], "-k", "30")
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert [word for word in ("rank", "object_id", "distance", "size", "score") if word not in lines[0]] == []
    listed = [line for line in lines if "object " in line]
    assert len(listed) == 30  # none is left out for an ellipsis
    for line, name in zip(listed, exact(VECTORS[7], without=7)[0], strict=False):
        assert name in line
    assert max(map(len, lines)) <= 160


def test_results_of_the_workflow_file(results: Path, project: Path) -> None:
    """Without --results they are where the workflow file says, whatever state the experiments are in."""
    (project / "config").mkdir()
    (project / "config/config.yaml").write_text(f"experiments: [absent]\nresults: {results}\n")
    done = CliRunner().invoke(main, ["search", "--experiment", "one", "--id", IDS[0], "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.output)) == 10


def test_nothing_is_where_no_workflow_file_is(project: Path) -> None:
    done = CliRunner().invoke(main, ["search", "--experiment", "one", "--id", IDS[0]])
    assert done.exit_code == 3
    assert done.output == "error: results/one/index: this experiment has no index; run the stage index first\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "no query was given; allowed: exactly one of --id, --vector, --image, --text"),
        (["--id", "a", "--vector", "v.npy"], 1, "2 queries were given (--id, --vector)"),
        (["--id", "object 7"], 3, "object 7"),
        (["--id", IDS[0], "-k", "0"], 3, "0 neighbours were asked for"),
        (["--vector", "absent.npy"], 3, "absent.npy: not a readable vector"),
        (["--vector", "text.npy"], 3, "text.npy: not a readable vector"),
        (["--vector", "empty.npy"], 3, "empty.npy: not a readable vector"),
        (["--vector", "several.npz"], 3, "several.npz: an archive of several arrays"),
        (["--vector", "short.npy"], 3, "the query has 3 dimensions, the index 5"),
        (["--vector", "cube.npy"], 3, "has shape (2, 5, 1)"),
        (["--vector", "words.npy"], 3, "allowed: a vector of numbers, or a table of which each row is one"),
        (["--id", IDS[0], "--where", "sise > 3"], 3, "column 'sise' is unknown; allowed: size, score, split, group"),
        (["--id", IDS[0], "--where", "size > big"], 3, "column 'size' holds numbers, found big"),
        (["--vector", "nan.npy"], 3, "not finite"),
    ],
)
def test_one_clear_line(results: Path, project: Path, arguments: list[str], code: int, message: str) -> None:
    (project / "text.npy").write_text("1 2 3")
    (project / "empty.npy").write_bytes(b"")
    np.savez(project / "several.npz", np.zeros(5))
    np.save(project / "short.npy", np.zeros(3))
    np.save(project / "cube.npy", np.zeros((2, 5, 1)))
    np.save(project / "words.npy", np.array(["a", "b"]))
    np.save(project / "nan.npy", np.full(5, np.nan))
    done = search(results, *arguments)
    assert done.exit_code == code, done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    assert message in done.output


@pytest.mark.parametrize("option", ["--image", "--text"])
def test_the_scope_embeds_images_and_texts(
    option: str, results: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scope gets the stage's settings, the prepared data, the weights, and what was asked."""
    (project / "embedding_scope.py").write_text(
        "import json\nfrom pathlib import Path\n\nimport numpy as np\n\n"
        "from manyscope.scopes.galaxies.scope import Galaxies\n\n\n"
        "class Embedding(Galaxies):\n"
        "    def embed_query(self, settings, prepared, weights, query):\n"
        "        told = [settings.infer.batch_size, str(prepared), str(weights), str(query), type(query).__name__]\n"
        "        Path('told.json').write_text(json.dumps(told))\n"
        f"        return np.array({VECTORS[11].tolist()}, np.float32)\n"
    )
    monkeypatch.syspath_prepend(str(project))
    (project / "config/experiments").mkdir(parents=True)
    (project / "config/config.yaml").write_text("experiments: [one]\n")
    (project / "config/experiments/one.yaml").write_text("scope: embedding_scope:Embedding\ninfer: {batch_size: 17}\n")
    assert load_experiment("one").infer.batch_size == 17
    found = rows(results, option, "what.png", "-k", "2")
    assert [row["object_id"] for row in found] == exact(VECTORS[11])[0][:2]
    batch, prepared, weights, query, kind = json.loads((project / "told.json").read_text())
    paths = ExperimentPaths.of(results, "one")
    assert (batch, prepared, weights, query) == (17, str(paths.prepared), str(paths.model), "what.png")
    assert kind == ("PosixPath" if option == "--image" else "str")


def test_a_scope_that_embeds_no_text_says_so(results: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "silent_scope.py").write_text(
        "from manyscope.scopes.base import Scope\nfrom manyscope.scopes.galaxies.scope import Galaxies\n\n\n"
        "class Silent(Galaxies):\n    name = 'silent'\n    embed_query = Scope.embed_query\n"
    )
    monkeypatch.syspath_prepend(str(project))
    (project / "config/experiments").mkdir(parents=True)
    (project / "config/config.yaml").write_text("experiments: [one]\n")
    (project / "config/experiments/one.yaml").write_text("scope: silent_scope:Silent\n")
    done = search(results, "--text", "a ring")
    assert done.exit_code == 1
    assert done.output == "error: scope 'silent' cannot search by image or text; use --id or --vector\n"


@pytest.fixture
def own(results: Path, tmp_path: Path) -> ExperimentPaths:
    """A copy whose files are as old as one likes."""
    shutil.copytree(results, tmp_path / "own")
    return ExperimentPaths.of(tmp_path / "own", "one")


def age(*files: Path) -> None:
    """As if these files had been written in this order."""
    for moment, file in enumerate(files):
        os.utime(file, (10**9 + moment, 10**9 + moment))


def test_an_index_that_is_older_than_the_predictions_is_refused_until_a_run_finds_it_right(
    own: ExperimentPaths,
) -> None:
    age(own.audit, own.predictions)
    done = search(own.root.parent, "--id", IDS[0])
    assert (done.exit_code, done.output.count("\n")) == (3, 1)
    assert "the index is older than the predictions; manyscope run one" in done.output
    confirm(own, "umap")
    assert search(own.root.parent, "--id", IDS[0]).exit_code == 3
    confirm(own)  # as Snakemake finds where the predictions were made again with the same bytes
    assert len(rows(own.root.parent, "--id", IDS[0])) == 10
    age(own.audit, own.samples, own.predictions)
    assert search(own.root.parent, "--id", IDS[0]).exit_code == 3


@pytest.mark.parametrize("option", ["--image", "--text"])
def test_no_query_is_embedded_by_a_newer_model_than_that_of_the_objects(
    option: str, own: ExperimentPaths, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyscope.commands import search as command

    monkeypatch.setattr(command, "_embed", lambda *_: VECTORS[11])
    own.model.parent.mkdir()
    own.model.write_bytes(b"of another training")
    age(own.predictions, own.audit, own.model)
    done = search(own.root.parent, option, "what.png")
    assert (done.exit_code, done.output.count("\n")) == (3, 1)
    assert "older than the model that would embed the query; manyscope run one" in done.output
    assert len(rows(own.root.parent, "--id", IDS[0])) == 10  # of the objects' own vectors
    confirm(own, "train")
    assert search(own.root.parent, option, "what.png").exit_code == 3
    confirm(own, "index")
    assert rows(own.root.parent, option, "what.png", "-k", "1")[0]["object_id"] == IDS[11]
