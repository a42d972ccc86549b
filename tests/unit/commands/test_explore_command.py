"""`manyscope explore`: which experiments are served, what is said of the others, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from manyscope.cli import main
from manyscope.commands.explore import OpenResults, open_library
from manyscope.errors import DataError
from manyscope.explorer.shelf import ChangedError
from manyscope.latent.search import search
from manyscope.settings.paths import ExperimentPaths
from manyscope.settings.sections import ExperimentSettings
from manyscope.tables.parquet import write_table

N, DIMENSIONS = 30, 4
IDS = [f"object {number:02d}" for number in range(N)]
VECTORS = np.random.default_rng(0).normal(size=(N, DIMENSIONS)).astype(np.float32)
SCOPE = f"""
import numpy as np
from PIL import Image

from manyscope.errors import DataError
from manyscope.scopes.galaxies.scope import Galaxies


class Served(Galaxies):
    def card(self):
        return ("score", "absent")

    def queries(self):
        return ("text",)

    def embed_query(self, settings, prepared, weights, query):
        if query == "nothing":
            raise DataError("nothing is meant", place=weights)
        return np.array({VECTORS[11].tolist()}, np.float32)

    def thumbnails(self, prepared, files, objects):
        # The red says which object it is.
        assert objects.columns == ["object_id", "sample_id", "score"]
        for name in objects["object_id"]:
            number = int(name.split()[1])
            if number == 5:
                raise OSError("broken")
            yield None if number == 3 else Image.new("L" if number == 4 else "RGB", (200, 100), number * 5)
"""


def write_results(folder: Path, name: str) -> ExperimentPaths:
    from manyscope.stages.index import run

    paths = ExperimentPaths.of(folder, name)
    paths.train.mkdir(parents=True)
    paths.model.write_bytes(b"weights")
    splits = ["train", "validation", "test"] * (N // 3)
    write_table(paths.samples, pl.DataFrame({"sample_id": IDS, "group": IDS, "split": splits, "size": range(N)}))
    predictions = {"object_id": IDS, "sample_id": IDS, "embedding": VECTORS, "score": np.arange(N) / 10}
    write_table(paths.predictions, pl.DataFrame(predictions))
    places = {"object_id": IDS, "x": np.arange(N, dtype=np.float32), "y": np.zeros(N, np.float32)}
    write_table(paths.map, pl.DataFrame(places))
    run(ExperimentSettings(scope="galaxies", model={"name": "any"}).for_stage("index"), paths)
    return paths


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explore")
    write_results(folder, "one")
    return folder


@pytest.fixture
def project(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workflow with the experiment `one` and its results."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "served_scope.py").write_text(SCOPE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shutil.copytree(made, tmp_path / "results")
    (tmp_path / "config/experiments").mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("experiments: [one]\n")
    experiment = "scope: served_scope:Served\ntitle: The first\nexplore: {neighbours: 4}\n"
    (tmp_path / "config/experiments/one.yaml").write_text(experiment)
    return tmp_path


CONFIG = Path("config/config.yaml")


@pytest.fixture
def opened(project: Path) -> Iterator[OpenResults]:
    view = open_library(Path("results"), ["one"], CONFIG)["one"].open()
    yield view
    view.close()


def explore(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["explore", *arguments])


def test_what_is_told_of_an_experiment(opened: OpenResults) -> None:
    about = opened.store.about
    assert (about["title"], about["scope"], about["card"]) == ("The first", "served_scope:Served", ("score",))
    assert (opened.neighbours, opened.pictures, opened.queries) == (4, True, ("text",))


def test_neighbours_are_those_of_search(opened: OpenResults) -> None:
    paths = ExperimentPaths.of(Path("results"), "one")
    for name in IDS[::7]:
        table = search(paths, 6, object_id=name)
        assert list(opened.nearest_to(name, 6)) == list(table.select("object_id", "distance").iter_rows())
    found = list(opened.nearest("a ring", 3))
    assert found == list(search(paths, 3, vector=VECTORS[11]).select("object_id", "distance").iter_rows())
    assert found[0] == (IDS[11], 0.0)
    with pytest.raises(DataError, match="nothing is meant"):
        opened.nearest("nothing", 3)


@pytest.mark.parametrize("store", ["exact", "lance"])
def test_every_store_is_served(project: Path, store: str) -> None:
    from manyscope.stages.index import run

    paths = ExperimentPaths.of(Path("results"), "one")
    chroma = [name for name, _ in nearest_in(paths, 4)]
    settings = ExperimentSettings(scope="galaxies", model={"name": "any"}, index={"store": store})
    run(settings.for_stage("index"), paths)
    assert [name for name, _ in nearest_in(paths, 4)] == chroma
    found = search(paths, 5, object_id=IDS[0])
    assert nearest_in(paths, 0) == list(found.select("object_id", "distance").iter_rows())


def nearest_in(paths: ExperimentPaths, row: int) -> list[tuple[str, float]]:
    view = open_library(paths.root.parent, ["one"], CONFIG)["one"].open()
    try:
        return list(view.nearest_to(IDS[row], 5))
    finally:
        view.close()


def test_a_store_whose_package_is_missing_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manyscope.stages.index import run

    settings = ExperimentSettings(scope="galaxies", model={"name": "any"}, index={"store": "lance"})
    run(settings.for_stage("index"), ExperimentPaths.of(Path("results"), "one"))
    monkeypatch.setitem(sys.modules, "lancedb", None)
    monkeypatch.delitem(sys.modules, "manyscope.latent.lance")
    view = open_library(Path("results"), [], CONFIG)["one"].open()
    assert (view.neighbours, view.queries) == (0, ())
    assert "needs the package lancedb" in view.notes[0]


def test_pictures_are_drawn_when_they_are_asked_for(opened: OpenResults) -> None:
    for row in (0, 20, 20):
        content = opened.picture(row)
        assert content is not None
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.format == "WEBP"
            assert max(picture.size) == 128
            assert abs(picture.getpixel((5, 5))[0] - 5 * row) < 4
    assert opened.picture(3) is None
    assert opened.picture(4) is not None
    with pytest.raises(OSError, match="broken"):
        opened.picture(5)


def test_pictures_wanted_at_one_moment_are_drawn_together(opened: OpenResults, monkeypatch: Any) -> None:
    drawn: list[list[int]] = []
    pictures = opened._pictures
    assert pictures is not None
    inner = pictures._drawn
    monkeypatch.setattr(pictures, "_drawn", lambda rows: drawn.append(rows) or inner(rows))
    pictures._wanted |= {7, 8}
    opened.picture(6)
    opened.picture(7)
    assert drawn == [[6, 7, 8]]
    pictures._wanted |= {5}
    assert opened.picture(9) is not None  # a broken one beside it does no harm
    assert drawn[1:] == [[9, 5], [9]]


def test_what_was_found_by_train_and_evaluate(opened: OpenResults) -> None:
    paths = ExperimentPaths.of(Path("results"), "one")
    assert (opened.training(), opened.figures()) == ({"metrics": [], "headline": None, "curves": []}, [])
    numbers = {"step": [1, 2, 3], "epoch": [0.1, 0.2, 0.3], "name": ["train/loss"] * 3, "value": [1.0, np.nan, 0.5]}
    write_table(paths.history, pl.DataFrame(numbers))
    paths.figures.mkdir(parents=True)
    captions = {"shown": "A figure.", "absent": "", "../../secret": "outside"}
    (paths.figures / "captions.json").write_text(json.dumps(captions))
    (paths.figures / "shown.png").write_bytes(b"a figure")
    (paths.root / "secret.png").write_bytes(b"a secret")
    found = opened.training()
    assert found["curves"] == [{"name": "train/loss", "step": s, "value": v} for s, v in ((1, 1.0), (3, 0.5))]
    assert opened.figures() == [{"name": "shown", "caption": "A figure."}]
    assert found["metrics"] == []
    assert (opened.figure("shown"), opened.figure("../../secret"), opened.figure("absent")) == (b"a figure", None, None)


def test_of_a_long_curve_so_many_points_are_sent(opened: OpenResults) -> None:
    paths, n = ExperimentPaths.of(Path("results"), "one"), 30_000
    names, steps = [("a", "b")[i % 2] for i in range(n)] + ["c"], [*range(n), 7]
    numbers = {"step": steps, "epoch": [0.5] * (n + 1), "name": names, "value": [step / 2 for step in steps]}
    write_table(paths.history, pl.DataFrame(numbers))
    curves = pl.DataFrame(opened.training()["curves"])
    assert (curves["value"] == curves["step"] / 2).all()
    counts = dict(curves.group_by("name").len().iter_rows())
    assert counts == {"a": 2_000, "b": 2_000, "c": 1}
    one = curves.filter(name="b")["step"]
    assert (one[0], one[-1], one.is_sorted()) == (1, n - 1, True)
    assert one.diff().drop_nulls().is_between(14, 16).all()


def test_without_an_index_there_are_no_neighbours(project: Path) -> None:
    shutil.rmtree("results/one/index")
    view = open_library(Path("results"), [], CONFIG)["one"].open()
    assert (view.neighbours, view.queries) == (0, ())
    assert view.notes == ["no neighbours: there is no index, run the stage index"]
    with pytest.raises(DataError, match="run the stage index"):
        view.nearest_to(IDS[0], 3)


def test_a_broken_index_is_said(project: Path) -> None:
    Path("results/one/index/chroma.sqlite3").write_bytes(b"no database")
    view = open_library(Path("results"), [], CONFIG)["one"].open()
    assert view.neighbours == 0
    assert view.notes == ["no neighbours: the index cannot be read, run the stage index again"]


def test_a_closed_one_says_that_it_has_changed(opened: OpenResults) -> None:
    opened.close()
    with pytest.raises(ChangedError):
        opened.nearest_to(IDS[0], 3)


def test_all_that_is_shown_makes_the_version(project: Path) -> None:
    one = open_library(Path("results"), [], CONFIG)["one"]
    paths, seen = one.paths, [one.version()]
    others = (paths.audit, paths.model, paths.history, paths.metrics, paths.figures / "captions.json")
    for file in (paths.predictions, paths.samples, paths.map, *others):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((file.read_bytes() if file.exists() else b"") + b" ")
        seen.append(one.version())
    paths.metrics.unlink()
    seen.append(one.version())
    assert len(set(seen)) == len(seen) == 10
    assert one.version() == seen[-1]
    paths.map.unlink()
    with pytest.raises(DataError, match="the file is missing"):
        one.version()


def test_settings_that_change_while_the_page_is_served(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are asked for at each question but not read at each; a new view has those of its moment."""
    one, file = open_library(Path("results"), [], CONFIG)["one"], Path("config/experiments/one.yaml")
    first = one.version()
    file.write_text("scope: served_scope:Served\ntitle: Another\nexplore: {neighbours: 7}\n")
    assert one.version() == first
    monkeypatch.setattr("manyscope.commands.explore._SETTINGS_S", -1)
    second = one.version()
    with closing(one.open()) as view:
        assert (view.store.about["title"], view.neighbours) == ("Another", 7)
        assert first != second == view.version
    file.write_text(file.read_text() + "umap: {seed: 3}\n")  # of which the page shows nothing
    assert one.version() == second
    file.write_text(file.read_text() + "infer: {batch_size: 3}\n")  # with which a query is embedded
    assert one.version() != second
    file.write_text("scope: [\n")
    with pytest.raises(DataError, match="nothing tells the scope"):
        one.open()


def test_no_search_by_a_model_that_is_newer_than_the_objects(project: Path) -> None:
    """Its vectors are of another latent space: the nearest objects would be any."""
    library, paths = open_library(Path("results"), [], CONFIG), ExperimentPaths.of(Path("results"), "one")
    clock = time.time_ns() - 10**12
    reasons = {
        (1, 2, 3): None,
        (3, 2, 3): "the model is newer than the predictions, run the stages infer, gather and index",
        (1, 3, 2): "the predictions are newer than the index, run the stage index",
    }
    for times, reason in reasons.items():
        for file, moment in zip((paths.model, paths.predictions, paths.audit), times, strict=True):
            os.utime(file, ns=(clock + moment * 10**9,) * 2)
        with closing(library["one"].open()) as view:
            assert view.queries == ("text",)
            if reason is None:
                assert len(list(view.nearest("a ring", 3))) == 3
                continue
            assert f"no search by text: {reason}" in view.notes
            assert len(list(view.nearest_to(IDS[0], 3))) == 3
            with pytest.raises(DataError, match=reason):
                view.nearest("a ring", 3)


def test_a_model_that_is_replaced_while_it_embeds(opened: OpenResults, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(*arguments: Any) -> np.ndarray:
        arguments[2].write_bytes(b"other weights")
        return VECTORS[0]

    monkeypatch.setattr(opened._scope, "embed_query", embed)
    with pytest.raises(ChangedError):
        opened.nearest("a ring", 3)


@pytest.mark.parametrize("broken", [False, True])
def test_results_whose_settings_are_gone(project: Path, broken: bool) -> None:
    """Served with what they tell of themselves: the scope, and so the pictures, but nothing can be embedded."""
    if broken:
        Path("config/experiments/one.yaml").write_text("scope: served_scope:Served\ntrain: {epochs: many}\n")
    else:
        shutil.rmtree("config")
    with pytest.raises(DataError, match=r"nothing tells the scope of these results; put the file one\.yaml back"):
        open_library(Path("results"), ["one"], CONFIG)
    Path("results/one/train/settings.yaml").write_text("scope: served_scope:Served\n")
    view = open_library(Path("results"), ["one"], CONFIG)["one"].open()
    assert (view.store.about["title"], view.queries, view.neighbours) == ("one", (), 10)
    assert view.picture(0) is not None
    Path("results/one/train/settings.yaml").write_text("scope: one_that_is_not_installed\n")
    view = open_library(Path("results"), ["one"], CONFIG)["one"].open()
    assert (view.pictures, view.picture(0), view.store.about["scope"]) == (False, None, "one_that_is_not_installed")


def test_experiments_without_a_map_are_not_served(project: Path) -> None:
    shutil.copytree("results/one", "results/two")
    shutil.copytree("results/one", "results/three")
    Path("results/three/umap/umap.parquet").unlink()
    Path("results/two/infer/predictions.parquet").unlink()
    assert list(open_library(Path("results"), [], CONFIG)) == ["one"]
    with pytest.raises(DataError, match=r"predictions\.parquet: the file is missing"):
        open_library(Path("results"), ["one", "two"], CONFIG)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["oen"], 3, "results: experiment 'oen' has no map; allowed: with a map: one; did you mean 'one'?"),
        (["../results/one"], 3, "experiment '../results/one' has no map"),
        (["--results", "elsewhere"], 3, "elsewhere: no experiment has a map; run `manyscope run`, or see --results"),
        (["one", "--host", "256.1.1.1"], 1, "256.1.1.1:0: cannot be served here"),
        (["one", "--port", "70000"], 2, "70000 is not in the range"),
        (["one", "--experiment", "one"], 2, "--experiment one writes a page, one would be served: give one"),
        (["--experiment", "one", "--port", "1"], 2, "--port is for serving: leave out --experiment"),
        (["--experiment", "one", "--no-open"], 2, "--open is for serving"),
        (["--experiment", "one", "--points", "9"], 2, "--points is for serving"),
        (["one", "--points", "0"], 2, "0 is not in the range"),
        (["one", "--set", "a=b"], 2, "--set is for writing the page: give --experiment too"),
    ],
)
def test_one_clear_line(project: Path, arguments: list[str], code: int, message: str) -> None:
    done = explore(*arguments)
    assert done.exit_code == code, done.output
    assert message in done.output
    assert "Traceback" not in done.output


def test_as_many_objects_are_drawn_at_once_as_are_asked_for(project: Path) -> None:
    view = open_library(Path("results"), ["one"], CONFIG, points=N - 1)["one"].open()
    assert not view.store.draws_all
    assert len(view.store.points().rows) == N - 1
    assert open_library(Path("results"), ["one"], CONFIG)["one"].open().store.draws_all


def test_a_port_that_is_taken(project: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = explore("--port", str(other.getsockname()[1]))
    assert done.exit_code == 1
    assert done.output.count("\n") == 1
    assert "cannot be served here" in done.output
    assert "choose another --port, or --port 0" in done.output


def test_with_the_option_experiment_it_is_the_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, ...]] = []
    monkeypatch.setattr("manyscope.stages.explore.run", lambda settings, paths: ran.append((settings, paths)))
    done = explore("--experiment", "one", "--set", "explore.neighbours=3")
    assert done.exit_code == 0, done.output
    [(settings, paths)] = ran
    assert (settings.explore.neighbours, paths) == (3, ExperimentPaths.of("results", "one"))


Server = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def server(project: Path) -> Iterator[Server]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "manyscope.cli", "explore", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_one_address_and_a_clean_end(server: Server) -> None:
    """From the printed address alone a browser gets to the answers; Ctrl-C ends it without a word too many."""
    process, address = server()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
    with httpx.Client(base_url=address.split("/?")[0], follow_redirects=True) as browser:
        assert browser.get("/").status_code == 401
        page = browser.get(address)
        assert (page.status_code, str(page.url)) == (200, address.split("?")[0])
        about = browser.get("/api/experiments/one/about").json()
        near = browser.get("/api/experiments/one/neighbours/0", params={"version": about["version"], "k": 1}).json()
        expected = search(ExperimentPaths.of("results", "one"), 1, object_id=IDS[0])
        assert (near[0]["id"], near[0]["distance"]) == (expected["object_id"][0], expected["distance"][0])
        large = browser.post(
            "/api/experiments/one/find", params={"version": about["version"]}, content=b"x" * 2**25 + b"x"
        )
        assert large.status_code == 413
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode in (0, 130)
    assert rest == ""
    assert "Traceback" not in errors
    assert address.split("=")[1] not in errors
    assert [line.split(" INFO ")[-1] for line in errors.splitlines()] == ["serving one; Ctrl-C ends it", "stopped"]


def test_a_server_that_others_can_reach_warns(server: Server) -> None:
    process, address = server("--host", "0.0.0.0")
    assert address.startswith("http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert "others on the network can reach this page" in errors


def test_both_families_of_addresses(server: Server) -> None:
    """The printed address answers, whatever the machine makes of "::"."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    _, address = server("--host", "::")
    place, token = re.fullmatch(r"http://(?:127\.0\.0\.1|\[::1\]):(\d+)/\?token=(.+)", address).groups()
    headers = {"Authorization": f"Bearer {token}"}
    answers = [httpx.get(f"{address.split('/?')[0]}/api/experiments", headers=headers)]
    answers += [httpx.get(f"http://{host}:{place}/api/experiments", headers=headers) for host in ("[::1]", "127.0.0.1")]
    assert [answer.status_code for answer in answers] == [200] * 3
    _, address = server("--host", "::1")
    assert address.startswith("http://[::1]:")
    assert httpx.get(address).status_code == 303


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_browser_is_not_started_with_the_token(
    server: Server, project: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals
) -> None:
    """Everybody on the machine sees with what a process was started; the file that it opens is this user's."""
    seen = project / "seen"
    script = (
        f'#!/bin/sh\nstat -c %a "$(echo $1 | cut -c8-)" > {seen}.new; echo $1 >> {seen}.new; mv {seen}.new {seen}\n'
    )
    (project / "browser").write_text(script)
    (project / "browser").chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{project / 'browser'} %s")
    monkeypatch.setenv("TMPDIR", str(project))
    process, address = server("--open")
    for _ in range(300):
        if seen.exists():
            break
        time.sleep(0.1)
    rights, opened = seen.read_text().split()
    file = Path(opened.removeprefix("file://"))
    assert rights == "600"
    assert f'content="0; url={address}"' in file.read_text()
    process.send_signal(end)
    assert process.wait(timeout=30) in (0, 130)
    assert not file.exists()


async def ask_at_once(address: str, questions: list[tuple[str, str, Any]]) -> list[httpx.Response]:
    """Every question over a connection of its own, all opened before the first is answered."""
    place, token = address.split("/?token=")
    limits = httpx.Limits(max_connections=len(questions))
    async with httpx.AsyncClient(
        base_url=place, headers={"Authorization": f"Bearer {token}"}, limits=limits, timeout=60
    ) as client:
        return await asyncio.gather(*(client.request(method, path, json=body) for method, path, body in questions))


def test_two_hundred_at_once(server: Server) -> None:
    """To a real server: first all are answered; then results change in the middle, and whoever asks about the old ones
    is told so and nothing worse."""
    _, address = server()
    paths, api = ExperimentPaths.of("results", "one"), "/api/experiments/one"

    def version() -> str:
        [answer] = asyncio.run(ask_at_once(address, [("GET", f"{api}/about", None)]))
        return answer.json()["version"]

    def questions(version: str) -> list[tuple[str, str, Any]]:
        kinds: list[Callable[[int], tuple[str, str, Any]]] = [
            lambda row: ("GET", f"{api}/neighbours/{row}?k=5&version={version}", None),
            lambda row: ("GET", f"{api}/pictures/{row if row != 5 else 6}?version={version}", None),
            lambda row: ("POST", f"{api}/points?version={version}", {"colour": "score"}),
            lambda row: ("POST", f"{api}/records?version={version}", {"rows": [row], "names": ["score", "size"]}),
            lambda row: ("POST", f"{api}/search/text?k=3&version={version}", {"text": "a ring"}),
        ]
        return [kinds[i % len(kinds)](i // len(kinds) % N) for i in range(200)]

    first = version()
    answers = asyncio.run(ask_at_once(address, questions(first)))
    assert {answer.status_code for answer in answers} <= {200, 204}
    assert [answer.json()[0]["id"] for answer in answers[3::5]] == [IDS[i % N] for i in range(40)]
    table = {row: search(paths, 5, object_id=IDS[row])["object_id"].to_list() for row in range(N)}
    assert [[near["id"] for near in answer.json()] for answer in answers[0::5]] == [table[i % N] for i in range(40)]

    async def changed() -> list[httpx.Response]:
        async def change() -> None:
            await asyncio.sleep(0.1)
            os.utime(paths.audit)

        asked = questions(first)
        asked[::2] = [("GET", f"{api}/about", None)] * len(asked[::2])  # which opens what is there now
        answers, _ = await asyncio.gather(ask_at_once(address, asked), change())
        return answers

    assert {answer.status_code for answer in asyncio.run(changed())} <= {200, 204, 409}
    second = version()
    assert second != first
    answers = asyncio.run(ask_at_once(address, questions(first)[:5] + questions(second)[:5]))
    assert [answer.status_code for answer in answers] == [409] * 5 + [200] * 5


def test_help_loads_neither_the_server_nor_any_model(project: Path) -> None:
    code = "import sys; from manyscope.cli import main; main(['explore', '--help'], standalone_mode=False);"
    code += " print(sorted({'fastapi', 'numpy', 'torch', 'uvicorn'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
