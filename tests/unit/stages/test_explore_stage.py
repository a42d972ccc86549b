"""explore: the page of an experiment, from the tables of the earlier stages."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.latent.index import build
from manyscope.latent.search import search
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings, ExploreSettings, IndexSettings, ModelSettings
from manyscope.stages import explore
from manyscope.tables.parquet import write_table
from workspace import page_data

SCOPE = """
from PIL import Image

from manyscope.scopes.base import Scope
from manyscope.settings.sections import ExperimentSettings


class Fake(Scope):
    name = "fake"
    Settings = ExperimentSettings
    data = download = evaluate = model = predict_batch = preprocess = None

    def card(self):
        return ["outlier_knn", "absent", "flux"]

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


def settings(metric: str = "l2", **changes: Any) -> ExperimentSettings:
    return ExperimentSettings(
        scope="fake_scope_to_explore:Fake",
        title="A title",
        model=ModelSettings(name="none"),
        index=IndexSettings(metric=metric),
        explore=ExploreSettings(**changes),
    ).for_stage("explore")


def unpacked(value: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"])


def strips(data: dict[str, Any]) -> dict[str, list[tuple[str, float]]]:
    """For each object the ids and distances of its neighbours."""
    ids, n = data["ids"], len(data["ids"])
    rows, distances = (unpacked(data[name]).reshape(n, -1).tolist() for name in ("neighbours", "distances"))
    return {
        one: [(ids[row], distance) for row, distance in zip(near, far, strict=True)]
        for one, near, far in zip(ids, rows, distances, strict=True)
    }


def test_objects_coordinates_columns_and_neighbours_are_joined_in_one_order(paths: ExperimentPaths):
    explore.run(settings(neighbours=2), paths)
    data = page_data(paths.page)
    assert data["ids"] == [f"object-{i}" for i in range(N)]
    about = data["about"]
    assert (about["experiment"], about["scope"], about["title"]) == ("tiny", "fake", "A title")
    assert about["notes"] == ["neighbours are found by squared Euclidean distance"]
    assert about["card"] == ["outlier_knn", "flux"]
    x, y = (unpacked(axis) for axis in data["coordinates"])
    np.testing.assert_array_equal(x, np.arange(N))
    np.testing.assert_array_equal(y, np.arange(N) + 100)
    columns = dict(zip([column["name"] for column in about["columns"]], data["columns"], strict=True))
    assert list(columns) == ["flux", "kind", "flux (predicted)", "outlier_knn", "split", "group", "sample_id"]
    np.testing.assert_array_equal(unpacked(columns["flux"]["values"]), np.arange(N) // 2 / 4)
    np.testing.assert_array_equal(unpacked(columns["flux (predicted)"]["values"]), np.arange(N) * 1.5)
    assert strips(data)["object-0"] == [("object-1", 9), ("object-2", 36)]
    assert strips(data)["object-5"] == [("object-4", 9), ("object-6", 9)]
    slots = unpacked(data["pictures"]["slots"])
    assert slots[3] == -1
    assert (np.delete(slots, 3) >= 0).all()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_neighbours_are_those_of_a_search_with_its_distances(paths: ExperimentPaths, metric: str):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N, 4)).astype(np.float32)
    vectors[5] = vectors[2] = vectors[9]  # equally near ones come by their ids
    table = pl.read_parquet(paths.predictions).with_columns(embedding=pl.Series(vectors))
    write_table(paths.predictions, table)
    paths.index.mkdir()
    build(vectors, table["object_id"].to_list(), paths.index, IndexSettings(metric=metric))
    explore.run(settings(metric, neighbours=N - 1), paths)
    for name, strip in strips(page_data(paths.page)).items():
        found = search(paths, N - 1, object_id=name)
        assert [one for one, _ in strip] == found["object_id"].to_list()
        np.testing.assert_allclose([far for _, far in strip], found["distance"], rtol=1e-5, atol=1e-6)


def test_many_objects_are_sought_in_the_nearest_cells_and_the_page_says_so(
    paths: ExperimentPaths,
):
    explore.run(settings(neighbours=3, exact_objects=N), paths)
    exact = strips(page_data(paths.page))
    assert page_data(paths.page)["about"]["notes"] == ["neighbours are found by squared Euclidean distance"]
    explore.run(settings(neighbours=3, exact_objects=N - 1), paths)
    data = page_data(paths.page)
    assert strips(data) == exact  # so few objects are in cells that are all looked at
    assert data["about"]["notes"] == ["neighbours are found by squared Euclidean distance, nearly exactly"]
    explore.run(settings("ip", neighbours=3, exact_objects=1), paths)
    assert page_data(paths.page)["about"]["notes"] == ["neighbours are found by 1 - inner product"]


def test_more_objects_than_the_page_may_have_are_a_choice_that_it_states(paths: ExperimentPaths):
    explore.run(settings(objects=6, thumbnails=4, neighbours=2), paths)
    data = page_data(paths.page)
    ids = [f"object-{i}" for i in range(N)]
    rows = explore.chosen(ids, 6)
    assert data["ids"] == [ids[row] for row in rows]
    assert data["about"]["objects"] == 6
    assert data["about"]["notes"] == [
        "6 of 12 objects, chosen at random, are shown; all are on the page that `manyscope explore tiny` serves",
        "4 of them, chosen at random, may have a picture",
        "neighbours are found by squared Euclidean distance among the objects shown",
    ]
    np.testing.assert_array_equal(unpacked(data["coordinates"][0]), rows)
    names = [column["name"] for column in data["about"]["columns"]]
    np.testing.assert_array_equal(
        unpacked(data["columns"][names.index("flux (predicted)")]["values"]), np.array(rows) * 1.5
    )
    codes = unpacked(data["columns"][names.index("sample_id")]["codes"])
    levels = data["about"]["columns"][names.index("sample_id")]["levels"]
    assert [levels[code] for code in codes] == [f"sample-{row // 2}" for row in rows]
    assert sum(data["about"]["columns"][names.index("sample_id")]["counts"]) == 6
    nearest = [min((abs(a - b), b) for b in rows if b != a)[0] ** 2 * 9 for a in rows]
    assert [strip[0][1] for strip in strips(data).values()] == nearest
    pictured = {ids[row] for row in explore.chosen(ids, 4)} - {"object-3"}
    slots = unpacked(data["pictures"]["slots"])
    assert {name for name, slot in zip(data["ids"], slots, strict=True) if slot >= 0} == pictured


def test_pictures_are_bounded_by_a_choice_that_the_page_states(paths: ExperimentPaths):
    explore.run(settings(thumbnails=4), paths)
    data = page_data(paths.page)
    with_picture = np.flatnonzero(unpacked(data["pictures"]["slots"]) >= 0).tolist()
    chosen = explore.chosen(data["ids"], 4)
    assert len(chosen) == 4
    assert with_picture == [row for row in chosen if row != 3]
    assert data["about"]["notes"][0] == "4 of them, chosen at random, may have a picture"
    assert explore.chosen([*data["ids"], "another"], 20) == list(range(N + 1))
    kept = {data["ids"][row] for row in chosen}
    smaller = data["ids"][2:]
    assert kept - set(data["ids"][:2]) <= {smaller[row] for row in explore.chosen(smaller, 4)}


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
    rows = set(explore.chosen([f"object-{i}" for i in range(N)], 9)) - {3}
    assert len(rows & {4, 5}) > 0  # the objects of sample-2
    assert shown == {row: (0, 0, 255) if row in (4, 5) else (15 * row, 0, 0) for row in rows}


def test_no_pictures_no_neighbours_and_three_axes(paths: ExperimentPaths):
    write_tables(paths, N, "xyz")
    explore.run(settings(thumbnails=0, neighbours=0), paths)
    data = page_data(paths.page)
    assert len(data["coordinates"]) == 3
    assert data["pictures"]["sheets"] == []
    assert unpacked(data["neighbours"]).size == 0
    assert data["about"]["notes"] == []


@pytest.mark.parametrize("n", [1, 3])
def test_few_objects(paths: ExperimentPaths, n: int):
    explore.run(settings(), write_tables(paths, n))
    data = page_data(paths.page)
    assert len(data["ids"]) == n
    assert unpacked(data["neighbours"]).size == n * (n - 1)


def test_same_bytes_again(paths: ExperimentPaths):
    explore.run(settings(), paths)
    first = paths.page.read_bytes()
    explore.run(settings(), paths)
    assert paths.page.read_bytes() == first


def test_a_map_that_lacks_an_object_leaves_no_page(paths: ExperimentPaths):
    write_table(paths.map, pl.read_parquet(paths.map).head(-1))
    with pytest.raises(DataError, match="does not hold each object"):
        explore.run(settings(), paths)
    assert not paths.page.exists()


def test_no_object_at_all_is_an_error_that_says_what_to_do(paths: ExperimentPaths):
    for path in (paths.predictions, paths.map):
        write_table(path, pl.read_parquet(path).clear())
    with pytest.raises(DataError, match=r"predictions\.parquet: no objects; train longer"):
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
