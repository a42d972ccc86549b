"""The answers of the server, beside those of the store."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from manyscope.explorer.store import Among, Between, Containing, Shape

API = "/api/experiments/one"
V = {"version": "first"}


def ask(client: TestClient, path: str, body: Any, **more: Any) -> Any:
    answer = client.post(f"{API}/{path}", params={**V, **more}, json=body)
    assert answer.status_code == 200, answer.text
    return answer


def rows_of(answer: Any) -> list[int]:
    assert answer.headers["content-type"] == "application/octet-stream"
    return np.frombuffer(answer.content, "<i4").tolist()


def listed(*rows: int) -> dict[str, str]:
    return {"form": "list", "data": base64.b64encode(np.array(rows, "<i4").tobytes()).decode()}


def bits(objects: int, *rows: int) -> dict[str, str]:
    mask = np.zeros(objects, bool)
    mask[list(rows)] = True
    return {"form": "bits", "data": base64.b64encode(np.packbits(mask).tobytes()).decode()}


def array(value: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), value["dtype"])


def test_about(client: TestClient, experiment: Any) -> None:
    about = client.get(f"{API}/about").json()
    store = experiment.views[0].store
    assert about | json.loads(json.dumps(store.about)) == about
    more = {"notes": ["a note"], "neighbours": 5, "version": "first", "search": {"text": True, "image": True}}
    more |= {"all": True, "pictures": True, "experiments": ["one", "two"]}
    more |= {"records_at_once": 10_000}
    assert about == json.loads(json.dumps(store.about)) | more
    assert client.get("/api/experiments").json() == {"experiments": ["one", "two"]}


def test_find_and_within(client: TestClient, experiment: Any) -> None:
    body = {
        "filters": {"flux": {"low": 1, "high": None}, "kind": {"levels": ["a", None]}, "caption": {"part": "ION 1"}}
    }
    found = rows_of(ask(client, "find", body))
    store = experiment.views[0].store
    filters = {"flux": Between(1, None), "kind": Among(["a", None]), "caption": Containing("ION 1")}
    assert found == store.find(filters).tolist() != []
    assert rows_of(ask(client, "find", {"filters": {"object_id": {"part": "9"}}})) == [9, 19, 29]
    lasso = [[-1, -1], [1, -0.5], [0.5, 1]]
    found = rows_of(ask(client, "within", {"kind": "lasso", "points": lasso}))
    assert found == store.within(Shape("lasso", lasso)).tolist() != []
    box = {"kind": "box", "corners": [[-1, -1], [1, 1]], "camera": np.eye(4).ravel().tolist()}
    assert rows_of(ask(client, "within", box)) == store.within(Shape("box", box["corners"])).tolist() != []


def test_points(client: TestClient, experiment: Any) -> None:
    found = ask(client, "points", {"colour": "kind", "size": "flux", "view": [[0, 1], [0, 1]], "always": [1]}).json()
    expected = experiment.views[0].store.points(None, "kind", "flux")
    assert array(found["rows"]).tolist() == expected.rows.tolist()
    for given, axis in zip(found["axes"], expected.axes, strict=True):
        np.testing.assert_array_equal(array(given), axis)
    np.testing.assert_array_equal(array(found["colour"]), expected.colour)
    np.testing.assert_array_equal(array(found["size"]), expected.size)
    assert ask(client, "points", {}).json()["colour"] is None


def test_records_say_what_json_cannot(client: TestClient) -> None:
    found = ask(client, "records", {"rows": [4, 3, 8], "names": ["flux", "kind", "caption"]}).json()
    assert [(r["row"], r["id"]) for r in found] == [(4, "object 4"), (3, "object 3"), (8, "object 8")]
    assert found[0]["values"][:2] == ["Infinity", None]
    assert found[1]["values"][0] is None
    assert found[2]["values"][:2] == [2.0, None]


def test_sorted_histogram_and_csv_take_rows_in_either_form(client: TestClient, experiment: Any) -> None:
    store, rows = experiment.open().store, np.array([9, 3, 1, 6], np.int32)
    for form in (listed(9, 3, 1, 6), bits(40, 9, 3, 1, 6)):
        found = ask(client, "sorted", {"rows": form, "name": "flux", "descending": True})
        assert rows_of(found) == [9, 6, 1, 3]
        counts = ask(client, "histogram", {"name": "kind", "rows": form}).json()
        assert counts == store.histogram("kind", rows)
    assert rows_of(ask(client, "sorted", {"name": "object_id"})) == store.sorted(None, "object_id").tolist()
    assert ask(client, "histogram", {"name": "flux"}).json() == store.histogram("flux")
    text = ask(client, "csv", {"rows": listed(9, 3)})
    assert text.headers["content-type"].startswith("text/csv")
    assert text.text == "".join(store.csv(np.array([9, 3], np.int32)))
    assert [line[0] for line in csv.reader(io.StringIO(text.text, newline=""))] == ["object_id", "object 9", "object 3"]


def test_row_of_an_id(client: TestClient) -> None:
    rows = [client.get(f"{API}/row", params={**V, "id": name}).json() for name in ("object 5", "absent", "")]
    assert rows == [{"row": 5}, {"row": None}, {"row": None}]


def test_neighbours(client: TestClient) -> None:
    found = client.get(f"{API}/neighbours/5", params={**V, "k": 3}).json()
    assert found == [
        {"row": 4, "id": "object 4", "distance": 1.0},
        {"row": 6, "id": "object 6", "distance": 1.0},
        {"row": 3, "id": "object 3", "distance": 4.0},
    ]


def test_search_leaves_out_what_the_map_does_not_have(client: TestClient, experiment: Any) -> None:
    found = ask(client, "search/text", {"text": "a ring"}).json()
    assert [(one["row"], one["distance"]) for one in found] == [(7, 0.5), (8, 0.75)]
    assert experiment.views[0].asked == ["a ring"]


def picture(side: int = 8, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("PNG", ".png"), ("JPEG", ".jpg"), ("TIFF", ".tif")])
def test_an_image_is_a_file_until_it_is_embedded(client: TestClient, experiment: Any, kind: str, suffix: str) -> None:
    content = picture(kind=kind)
    found = client.post(f"{API}/search/image", params={**V, "k": 1}, content=content)
    assert [one["row"] for one in found.json()] == [7]
    [(file, seen)] = experiment.views[0].asked
    with Image.open(io.BytesIO(seen)) as shown, Image.open(io.BytesIO(content)) as given:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(given))
    assert file.suffix == suffix
    assert not file.parent.exists()


def test_a_photograph_may_have_others_behind_it(client: TestClient, experiment: Any) -> None:
    """As those of many telephones: Pillow says MPO of them, everything else takes them for JPEG."""
    file, one = io.BytesIO(), Image.new("RGB", (8, 8))
    one.save(file, "MPO", save_all=True, append_images=[one])
    with Image.open(io.BytesIO(file.getvalue())) as image:
        assert image.format == "MPO"
    assert client.post(f"{API}/search/image", params=V, content=file.getvalue()).status_code == 200
    [(name, seen)] = experiment.views[0].asked
    assert (name.suffix, seen) == (".jpg", file.getvalue())


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_a_row_of_pictures_is_refused(client: TestClient, experiment: Any, kind: str) -> None:
    """Each might be as large as one may be; of one with further frames a scope may decode all."""
    file, frames = io.BytesIO(), [Image.new("L", (8, 8), 50 * shade) for shade in range(3)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    answer = client.post(f"{API}/search/image", params=V, content=file.getvalue())
    assert (answer.status_code, answer.json()) == (422, {"detail": "the file holds several pictures; give one of them"})
    assert experiment.views[0].asked == []


def test_a_tiff_cannot_claim_more_than_it_holds(client: TestClient, experiment: Any) -> None:
    """Programs that follow such a description would fill the memory with a thousand empty pictures."""
    claim = "ImageJ=1.53t\nimages=1000\nframes=1000\n"
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 30)).quantize(4).save(file, "TIFF", description=claim)
    assert client.post(f"{API}/search/image", params=V, content=file.getvalue()).status_code == 200
    [(_, seen)] = experiment.views[0].asked
    assert b"ImageJ" in file.getvalue()
    assert b"ImageJ" not in seen
    with Image.open(io.BytesIO(seen)) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (200, 10, 30)


def test_an_image_that_is_none_leaves_no_file(client: TestClient, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for content in (b"", b"no picture", picture()[:40]):
        answer = client.post(f"{API}/search/image", params=V, content=content)
        assert answer.status_code in (200, 422)
    assert answer.json() is not None
    assert list(tmp_path.iterdir()) == []
    assert client.post(f"{API}/search/image", params=V, content=b"no picture").json() == {
        "detail": "this is no picture that can be read"
    }


def test_a_query_that_cannot_be_embedded(client: TestClient, experiment: Any) -> None:
    def refused(text: str) -> tuple[int, str]:
        answer = client.post(f"{API}/search/text", params=V, json={"text": text})
        return answer.status_code, answer.json()["detail"]

    assert refused("refused") == (422, "weights.ckpt: cannot be embedded")
    assert refused("broken") == (422, "the model cannot embed this (RuntimeError)")
    experiment.views[0].queries = ("image",)
    assert refused("a ring") == (422, "this experiment cannot be searched by text")


def test_pictures(client: TestClient) -> None:
    found = client.get(f"{API}/pictures/0", params=V)
    assert (found.content, found.headers["content-type"]) == (b"RIFF a picture", "image/webp")
    assert client.get(f"{API}/pictures/2", params=V).status_code == 204
    broken = client.get(f"{API}/pictures/1", params=V)
    assert (broken.status_code, broken.json()) == (404, {"detail": "the picture of this object cannot be drawn"})


def test_training_and_its_figures(client: TestClient) -> None:
    found = client.get(f"{API}/training", params=V).json()
    assert (found["headline"], found["metrics"][0]["difference_low"]) == ("msa", 0.3)
    assert found["curves"] == [{"name": "train/loss", "step": 1, "value": 0.25}]
    [figure] = found["figures"]
    answer = client.get(f"/{figure['address']}")
    assert (answer.content, answer.headers["content-type"]) == (b"a figure", "image/png")
    for number in ("1", "-1", "99999999999999999999"):
        assert client.get(f"{API}/figures/{number}", params=V).status_code == 404


def test_a_figure_is_found_without_the_rest(client: TestClient, experiment: Any, monkeypatch: Any) -> None:
    client.get(f"{API}/about")
    monkeypatch.delattr(type(experiment.views[0]), "training")
    assert client.get(f"{API}/figures/0", params=V).content == b"a figure"


def test_nothing_to_tell_of_the_training(client: TestClient, experiment: Any, monkeypatch: Any) -> None:
    client.get(f"{API}/about")
    view = experiment.views[0]
    monkeypatch.setattr(view, "training", lambda: {"metrics": [], "headline": None, "curves": []}, raising=False)
    assert client.get(f"{API}/training", params=V).json()["metrics"] == []
    monkeypatch.setattr(view, "figures", list, raising=False)
    assert client.get(f"{API}/training", params=V).json() is None


@pytest.mark.parametrize("letters", [10_001, 1_000_000])
def test_long_captions_can_be_sought(client: TestClient, experiment: Any, letters: int) -> None:
    client.get(f"{API}/about")
    store, caption = experiment.views[0].store, "x" * (letters - 1) + "1"
    store.column("caption").values[6] = caption
    for wanted in ({"part": caption}, {"levels": [caption, None, *map(str, range(2_000))]}):
        found = rows_of(ask(client, "find", {"filters": {"caption": wanted}}))
        assert 6 in found
        assert 7 not in found


def test_a_lasso_to_and_fro(client: TestClient, monkeypatch: Any) -> None:
    """Every edge beside every object: with ten thousand edges and a million objects this would take a minute."""
    corners = [[-9 + i % 2 * 18, -9 + i % 2 * 18 + i / 1000] for i in range(100)]
    assert ask(client, "within", {"kind": "lasso", "points": corners})
    monkeypatch.setattr("manyscope.explorer.store.MOST_CROSSINGS", 99 * 40)
    answer = client.post(f"{API}/within", params=V, json={"kind": "lasso", "points": corners})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("the lasso goes to and fro too often over too many objects")


def test_results_that_have_changed(client: TestClient, experiment: Any) -> None:
    assert client.get(f"{API}/about").json()["version"] == "first"
    experiment.present = "second"
    changed = client.get(f"{API}/neighbours/1", params=V)
    assert changed.status_code == 409
    assert changed.json() == {"detail": "the results of this experiment have changed: reload the page"}
    assert client.get(f"{API}/about").json()["version"] == "second"
    assert [view.closed for view in experiment.views] == [True, False]
    assert client.get(f"{API}/neighbours/1", params={"version": "second"}).status_code == 200
    experiment.views[1].closed = True  # between the look at the version and the answer
    assert client.get(f"{API}/neighbours/1", params={"version": "second"}).status_code == 409
    experiment.present = ""  # a stage is writing them
    assert client.get(f"{API}/neighbours/1", params={"version": "second"}).status_code == 409
    missing = client.get(f"{API}/about")
    assert (missing.status_code, missing.json()) == (422, {"detail": "predictions.parquet: the file is missing"})


def test_a_server_that_was_started_again_goes_on(client: TestClient, experiment: Any) -> None:
    assert client.get(f"{API}/neighbours/1", params=V).status_code == 200
    assert len(experiment.views) == 1


def test_views_are_closed_at_the_end(strangers: Callable[..., TestClient], experiment: Any) -> None:
    with strangers(headers={"Authorization": "Bearer a-token-that-is-long-enough"}) as client:
        client.get(f"{API}/about")
        assert not experiment.views[0].closed
    assert experiment.views[0].closed


BOX = {"kind": "box", "corners": [[0, 0], [1, 1]]}


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        ("find", {"filters": {"flxu": {"low": 0}}}, "there is no column 'flxu'; did you mean 'flux'?"),
        ("find", {"filters": {"flux": {}}}, "a filter has either low and high, or levels, or part"),
        ("find", {"filters": {"flux": {"low": 1, "part": "x"}}}, "a filter has either"),
        ("find", {"filters": {"flux": {"low": "NaN"}}}, "filters.flux.low: Input should be a finite number"),
        ("find", {}, "filters: Field required"),
        ("find", {"filters": {}, "more": 1}, "more: Extra inputs are not permitted"),
        ("within", {**BOX, "camera": [1]}, "camera: List should have at least 16 items"),
        ("within", {"kind": "lasso", "corners": BOX["corners"]}, "a box has corners, a lasso has points"),
        ("within", {"kind": "lasso", "points": []}, "points: List should have at least 1 item"),
        ("within", {"kind": "lasso", "points": [[0, 0]] * 10_001}, "points: List should have at most 10000 items"),
        ("points", {"colour": "caption"}, "holds text, which cannot be drawn"),
        ("points", {"always": [2**70]}, "a row is unknown"),
        ("records", {"rows": [40], "names": []}, "a row is unknown; allowed: 0 to 39"),
        ("records", {"rows": [-1], "names": []}, "a row is unknown"),
        ("records", {"rows": [0] * 10_001, "names": []}, "rows: List should have at most 10000 items"),
        ("sorted", {"rows": {"form": "list", "data": "AAA"}, "name": "flux"}, "the rows are not what their form says"),
        ("sorted", {"rows": {"form": "list", "data": "AAAA"}, "name": "flux"}, "the rows are not what their form says"),
        ("sorted", {"rows": {"form": "bits", "data": "AAAAAAAB"}, "name": "flux"}, "a row is unknown"),
        ("csv", {"rows": listed(*[0] * 41)}, "41 rows of 40 objects were given"),
        ("csv", {"rows": None}, "rows: "),
        ("histogram", {"name": "caption"}, "holds text, which has no histogram"),
        ("records", {"rows": [0] * 10_000, "names": ["flux"] * 201}, "10000 x 201 values; at most 2,000,000 are told"),
        ("records", {"rows": [], "names": [""] * 100_001}, "there are 100,001 of these; at most 100,000 are read"),
        ("find", {"filters": {"caption": {"part": "x" * 1_000_001}}}, "a text has 1,000,001 letters; at most"),
        ("find", {"filters": {"kind": {"levels": [None] * 100_001}}}, "there are 100,001 of these; at most"),
        ("search/text", {"text": ""}, "text: String should have at least 1 character"),
        ("search/text", {"text": "x" * 10_001}, "text: String should have at most 10000 characters"),
    ],
)
def test_one_sentence_of_what_is_wrong(client: TestClient, path: str, body: Any, found: str) -> None:
    answer = client.post(f"{API}/{path}", params=V, json=body)
    assert answer.status_code == 422
    assert list(answer.json()) == ["detail"]
    assert found in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"kind": "box", "corners": [[NaN, 0], [1, 1]]}', b'{"kind": "box", "corners": [[Infinity, 0], [1, 1]]}',
        b'{"kind": "box", "corners": [[1e999, 0], [1, 1]]}', b'{"kind": "box", "corners": [[1', b"\xff\xfe", b"",
        b"[" * 100_000, b'{"kind": "box", "corners": [[' + b"9" * 5000 + b", 0], [1, 1]]}", b"null",
        b'{"kind": "box\\ud800"}', b'{"\\ud800": 1}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_shape(client: TestClient, body: bytes) -> None:
    answer = client.post(f"{API}/within", params=V, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/experiments/three/about", 404), ("/api/nothing", 404), (f"{API}/find?version=first", 405),
        (f"{API}/neighbours/40?version=first", 404), (f"{API}/neighbours/-1?version=first", 404),
        (f"{API}/neighbours/x?version=first", 422), (f"{API}/pictures/{10**30}?version=first", 404),
        (f"{API}/pictures/{'9' * 5000}?version=first", 422), (f"{API}/neighbours/0?version=first&k=0", 422),
        (f"{API}/neighbours/0?version=first&k=1001", 422), (f"{API}/neighbours/0?version=first&k=1e2", 422),
        (f"{API}/neighbours/0", 422), (f"{API}/neighbours/0?version=other", 409), (f"{API}/row?version=first", 422),
    ],
)  # fmt: skip
def test_places_and_numbers_that_do_not_exist(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])


@pytest.mark.parametrize("changing", [False, True])
def test_two_hundred_at_once(client: TestClient, experiment: Any, changing: bool) -> None:
    """Also while the results change under way, nothing but an answer or the word to reload comes."""
    threads = 20
    barrier = threading.Barrier(threads)

    def one(number: int) -> tuple[int, Any]:
        if number < threads:
            barrier.wait()
        if changing and number == 100:
            experiment.present = "second"
        row = number % 40
        if number % 3 == 0:
            return row, client.get(f"{API}/neighbours/{row}", params={**V, "k": 1})
        if number % 3 == 1:
            return row, client.get(f"{API}/pictures/{row if row not in (1, 2) else 0}", params=V)
        if number % 15 == 2:
            return row, client.get(f"{API}/about")  # which opens what is there now
        return row, client.post(f"{API}/histogram", params=V, json={"name": "kind"})

    with ThreadPoolExecutor(threads) as pool:
        answers = list(pool.map(one, range(200)))
    assert {answer.status_code for _, answer in answers} == ({200, 409} if changing else {200})
    for row, answer in answers[::3]:
        assert answer.status_code == 409 or abs(answer.json()[0]["row"] - row) == 1
    assert [view.closed for view in experiment.views] == ([True, False] if changing else [False])
    assert client.get(f"{API}/about").json()["version"] == experiment.present
