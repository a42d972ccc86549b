"""explore: the page of an experiment, from the tables of the earlier stages."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ExploreSettings, ModelSettings
from manyscope.stages import explore
from manyscope.tables.parquet import write_table

SCOPE = """
from PIL import Image

from manyscope.scopes.base import Scope
from manyscope.settings.sections import ExperimentSettings


class Fake(Scope):
    name = "fake"
    Settings = ExperimentSettings
    data = download = evaluate = model = predict_batch = preprocess = None

    def thumbnails(self, prepared, files, objects):
        # The red says which object it is, unless there is a file of the sample.
        assert objects.columns == ["object_id", "sample_id", "flux", "outlier_knn"]
        for name, sample, flux in objects.select("object_id", "sample_id", "flux").iter_rows():
            drawn = files / f"{sample}.png"
            picture = Image.open(drawn) if drawn.exists() else Image.new("RGB", (16, 16), (int(10 * flux), 0, 0))
            yield None if name == "object-3" else picture
"""
N = 12


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentPaths:
    (tmp_path / "fake_scope_to_explore.py").write_text(SCOPE)
    monkeypatch.syspath_prepend(tmp_path)
    return write_tables(ExperimentPaths.of(tmp_path / "results", "tiny"), N)


def write_tables(made: ExperimentPaths, n: int, axes: str = "xy") -> ExperimentPaths:
    """n objects on a line in latent space, two for each sample; the map is in another order."""
    ids = [f"object-{i}" for i in range(n)]
    owners = [f"sample-{i // 2}" for i in range(n)]
    own = sorted(set(owners), key=owners.index)
    names = {"sample_id": own, "group": ["g"] * len(own), "split": ["test"] * len(own)}
    metadata = {"flux": np.arange(len(own)) / 4, "kind": ["a"] * len(own), "shape": np.zeros((len(own), 2))}
    write_table(made.samples, pl.DataFrame({**names, **metadata}))
    line = np.stack([np.arange(n) * 3.0, np.zeros(n)], 1).astype(np.float32)
    columns = {"flux": np.arange(n) * 1.5, "outlier_knn": np.ones(n, np.float32)}
    write_table(made.predictions, pl.DataFrame({"object_id": ids, "sample_id": owners, "embedding": line, **columns}))
    places = {axis: np.arange(n, dtype=np.float32) + 100 * i for i, axis in enumerate(axes)}
    write_table(made.map, pl.DataFrame({"object_id": ids, **places}).reverse())
    return made


def settings(**changes: Any) -> ExperimentSettings:
    return ExperimentSettings(
        scope="fake_scope_to_explore:Fake", model=ModelSettings(name="none"), explore=ExploreSettings(**changes)
    ).for_stage("explore")


def embedded(paths: ExperimentPaths) -> dict[str, Any]:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', paths.page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(value: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"])


def test_objects_coordinates_columns_and_neighbours_are_joined_in_one_order(paths: ExperimentPaths):
    explore.run(settings(neighbours=2), paths)
    data = embedded(paths)
    assert data["ids"] == [f"object-{i}" for i in range(N)]
    assert (data["experiment"], data["scope"], data["notes"]) == ("tiny", "fake", [])
    x, y = (unpacked(axis) for axis in data["coordinates"])
    np.testing.assert_array_equal(x, np.arange(N))
    np.testing.assert_array_equal(y, np.arange(N) + 100)
    columns = {c["name"]: c for c in data["columns"]}
    assert list(columns) == ["flux", "kind", "flux (predicted)", "outlier_knn", "split", "group", "sample_id"]
    np.testing.assert_array_equal(unpacked(columns["flux"]["values"]), np.arange(N) // 2 / 4)
    np.testing.assert_array_equal(unpacked(columns["flux (predicted)"]["values"]), np.arange(N) * 1.5)
    neighbours = unpacked(data["neighbours"]).reshape(N, 2)
    distances = unpacked(data["distances"]).reshape(N, 2)
    assert set(neighbours[5]) == {4, 6}
    assert neighbours[0].tolist() == [1, 2]
    np.testing.assert_allclose(distances[0], [3, 6], rtol=1e-5)
    slots = unpacked(data["pictures"]["slots"])
    assert slots[3] == -1
    assert (np.delete(slots, 3) >= 0).all()


def test_pictures_are_bounded_by_a_choice_that_the_page_states(paths: ExperimentPaths):
    explore.run(settings(thumbnails=4), paths)
    data = embedded(paths)
    with_picture = np.flatnonzero(unpacked(data["pictures"]["slots"]) >= 0).tolist()
    chosen = explore.pictured(data["ids"], 4)
    assert len(chosen) == 4
    assert with_picture == [row for row in chosen if row != 3]
    assert data["notes"] == ["4 of them, chosen at random, may have a picture"]
    assert explore.pictured([*data["ids"], "another"], 20) == list(range(N + 1))
    kept = {data["ids"][row] for row in chosen}
    smaller = data["ids"][2:]
    assert kept - set(data["ids"][:2]) <= {smaller[row] for row in explore.pictured(smaller, 4)}


def test_pictures_come_from_the_rows_of_the_predictions_and_the_files_of_the_samples(
    paths: ExperimentPaths, monkeypatch: pytest.MonkeyPatch
):
    paths.files.mkdir(parents=True)
    Image.new("RGB", (16, 16), (0, 0, 255)).save(paths.files / "sample-2.png")
    shown: dict[int, tuple[int, ...]] = {}

    def keep(path: Path, page: Any) -> None:
        shown.update({row: picture.getpixel((8, 8)) for row, picture in page.pictures if picture})
        path.parent.mkdir()
        path.touch()

    monkeypatch.setattr(explore, "write_page", keep)
    explore.run(settings(thumbnails=9), paths)
    rows = set(explore.pictured([f"object-{i}" for i in range(N)], 9)) - {3}
    assert len(rows & {4, 5}) > 0  # the objects of sample-2
    assert shown == {row: (0, 0, 255) if row in (4, 5) else (15 * row, 0, 0) for row in rows}


def test_no_pictures_no_neighbours_and_three_axes(paths: ExperimentPaths):
    write_tables(paths, N, "xyz")
    explore.run(settings(thumbnails=0, neighbours=0), paths)
    data = embedded(paths)
    assert len(data["coordinates"]) == 3
    assert data["pictures"]["sheets"] == []
    assert unpacked(data["neighbours"]).size == 0


@pytest.mark.parametrize("n", [1, 3])
def test_few_objects(paths: ExperimentPaths, n: int):
    explore.run(settings(), write_tables(paths, n))
    data = embedded(paths)
    assert len(data["ids"]) == n
    assert unpacked(data["neighbours"]).size == n * (n - 1)


def test_columns_that_only_repeat_the_id_are_left_out():
    ids = ["a", "b"]
    samples = pl.DataFrame({"sample_id": ids, "group": ids, "split": ["test", "train"]})
    predictions = pl.DataFrame({"object_id": ids, "sample_id": ids, "embedding": np.zeros((2, 2))})
    assert explore.object_columns(predictions, samples).columns == ["split"]


def test_same_bytes_again(paths: ExperimentPaths):
    explore.run(settings(), paths)
    first = paths.page.read_bytes()
    explore.run(settings(), paths)
    assert paths.page.read_bytes() == first


@pytest.mark.parametrize("change", ["lost", "twice", "axes"])
def test_a_map_that_does_not_fit_is_an_error(paths: ExperimentPaths, change: str):
    table = pl.read_parquet(paths.map)
    changed = {"lost": table.head(-1), "twice": pl.concat([table, table.head(1)]), "axes": table.drop("y")}
    write_table(paths.map, changed[change])
    with pytest.raises(DataError, match="does not hold each object"):
        explore.run(settings(), paths)
    assert not paths.page.exists()


def test_the_stage_imports_no_torch(paths: ExperimentPaths):
    program = (
        "import sys; from pathlib import Path; from manyscope.settings.sections import ExperimentSettings\n"
        "from manyscope.settings.paths import ExperimentPaths; from manyscope.stages import explore\n"
        "values = {'scope': 'fake_scope_to_explore:Fake', 'explore': {}}\n"
        "settings = ExperimentSettings.from_stage_values('explore', values)\n"
        "explore.run(settings, ExperimentPaths(Path(sys.argv[1])))\n"
        "print(sorted({'torch', 'umap', 'chromadb', 'matplotlib', 'pytorch_lightning'} & sys.modules.keys()))\n"
    )
    folder = paths.root.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program, str(paths.root)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stderr
