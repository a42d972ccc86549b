"""What a page embeds comes out as it went in, whatever it is, and the same content gives the same bytes."""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manyscope.explorer import payload
from manyscope.explorer.contents import Contents, plain_columns
from manyscope.explorer.page import Page
from manyscope.explorer.payload import PICTURE_PX, packed, packed_contents, packed_pictures


def page(n: int = 5, axes: int = 2, k: int = 2, columns: pl.DataFrame | None = None, **changes: Any) -> Page:
    rng = np.random.default_rng(0)
    k = min(k, n - 1)
    table = pl.DataFrame({"flux": rng.normal(size=n), "kind": ["a"] * n}) if columns is None else columns
    made = Contents(
        experiment="test",
        scope="fake",
        title="A title",
        object_ids=changes.pop("object_ids", [f"object-{i}" for i in range(n)]),
        coordinates=changes.pop("coordinates", rng.normal(size=(n, axes)).astype(np.float32)),
        columns=plain_columns(table),
        card=("flux",),
    )
    near = np.array([[j for j in range(n) if j != i][:k] for i in range(n)]).reshape(n, k)
    return Page(made, near, rng.random((n, k)), **changes)


def opened(value: dict[str, str]) -> dict[str, Any]:
    assert list(value) == ["packed"]
    content: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(value["packed"]), -15))
    return content


def unpacked(value: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]).newbyteorder("<"))


@pytest.mark.parametrize(("n", "axes"), [(1, 2), (3, 2), (3, 3), (50, 3)])
def test_contents_come_out_as_they_went_in(n: int, axes: int):
    given_page = page(n, axes, notes=["a note"])
    data = opened(packed_contents(given_page))
    contents = given_page.contents
    assert data["ids"] == contents.object_ids
    np.testing.assert_array_equal(np.stack([unpacked(a) for a in data["coordinates"]], 1), contents.coordinates)
    np.testing.assert_array_equal(unpacked(data["neighbours"]).reshape(n, -1), given_page.neighbours)
    assert data["neighbours"]["dtype"] == "int32"
    np.testing.assert_array_equal(unpacked(data["distances"]).reshape(n, -1), given_page.distances.astype(np.float32))
    flux, kind = data["columns"]
    np.testing.assert_array_equal(unpacked(flux["values"]), contents.columns[0].values)
    assert unpacked(kind["codes"]).tolist() == [0] * n
    assert unpacked(data["pictures"]["slots"]).tolist() == [-1] * n


def test_about_says_what_a_page_needs_to_offer():
    about = opened(packed_contents(page(5, notes=["a note"])))["about"]
    assert {name: about[name] for name in ("experiment", "scope", "title", "objects", "axes", "card", "notes")} == {
        "experiment": "test", "scope": "fake", "title": "A title", "objects": 5, "axes": 2, "card": ["flux"],
        "notes": ["a note"],
    }  # fmt: skip
    assert (about["neighbours"], about["all"], about["experiments"]) == (2, True, ["test"])
    assert about["search"] == {"text": False, "image": False}
    assert [column["name"] for column in about["columns"]] == ["flux", "kind"]
    assert about["columns"][1]["levels"] == ["a"]


def test_the_version_and_the_bytes_change_with_the_content_alone():
    values = [
        page(),
        page(),
        page(notes=["n"]),
        page(object_ids=list("abcde")),
        page(pictures=[(0, picture(3))]),
        page(columns=pl.DataFrame({"flux": [1.0] * 5})),
    ]
    first, again, *others = (packed_contents(value) for value in values)
    assert first == again
    versions = [opened(value)["about"]["version"] for value in (first, *others)]
    assert len(set(versions)) == 5
    assert all(len(found) == 16 for found in versions)


def test_identifiers_come_out_with_every_digit():
    runs = [67326551 + i for i in range(20)]
    ids = [4997209935789211092 + i for i in range(20)]
    data = opened(packed_contents(page(20, columns=pl.DataFrame({"run": runs, "id": ids, "flux": np.arange(20) / 3}))))
    run, source, flux = data["about"]["columns"]
    assert unpacked(data["columns"][0]["values"]).tolist() == runs
    assert source["levels"] == [str(one) for one in ids]
    assert (run["whole"], flux["whole"]) == (True, False)


NASTY = ["", " ", 'a,"b"\'\n', "</script><!--", "\u2028\0", "日本語 🔭 ü", "x" * 10_000, "<img src=x>", "null", "-1"]


def test_texts_of_any_kind_come_out_as_they_went_in():
    n = 300
    captions = [NASTY[i % len(NASTY)] + (f" {i}" if i >= len(NASTY) else "") for i in range(n)]
    ids = [f"{NASTY[i % len(NASTY)]}#{i}" for i in range(n)]
    table = pl.DataFrame({"caption": [*captions[:-1], None], NASTY[3]: [NASTY[i % 10] for i in range(n)]})
    data = opened(packed_contents(page(n, columns=table, object_ids=ids)))
    caption, level = data["columns"]
    assert data["ids"] == ids
    assert caption["texts"] == [*captions[:-1], None]
    about = data["about"]["columns"][1]
    assert about["name"] == NASTY[3]
    assert [about["levels"][code] for code in unpacked(level["codes"])] == [NASTY[i % 10] for i in range(n)]


def test_columns_without_a_value_and_objects_in_one_place():
    table = pl.DataFrame(
        {"nan": [np.nan] * 4, "none": [None] * 4, "empty": pl.Series([None] * 4, dtype=pl.Float32), "inf": [np.inf] * 4}
    )
    data = opened(packed_contents(page(4, columns=table, coordinates=np.ones((4, 2), np.float32))))
    nan, none, empty, infinite = data["columns"]
    assert np.isnan(unpacked(nan["values"])).all()
    assert np.isnan(unpacked(empty["values"])).all()
    assert np.isposinf(unpacked(infinite["values"])).all()
    assert unpacked(none["codes"]).tolist() == [-1] * 4
    assert [column["missing"] for column in data["about"]["columns"]] == [4, 4, 4, 0]
    assert [column.get("low") for column in data["about"]["columns"]] == [None] * 4
    assert data["about"]["extent"] == [[1, 1], [1, 1]]
    nothing = opened(packed_contents(page(4, columns=pl.DataFrame())))
    assert (nothing["columns"], nothing["about"]["columns"]) == ([], [])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=8), min_size=1, max_size=9, unique=True), st.integers(0, 4), st.integers(2, 3))
def test_any_ids_and_any_number_of_neighbours(ids: list[str], k: int, axes: int):
    data = opened(packed_contents(page(len(ids), axes, k, object_ids=ids)))
    assert data["ids"] == ids
    assert data["about"]["neighbours"] == min(k, len(ids) - 1)
    assert len(unpacked(data["neighbours"])) == len(unpacked(data["distances"])) == len(ids) * min(k, len(ids) - 1)


def picture(value: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (value, 0, 255 - value))


def sheets_of(value: dict[str, Any]) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(sheet.removeprefix("data:image/webp;base64,")))).convert("RGBA")
        for sheet in value["sheets"]
    ]


def test_pictures_decode_from_their_cells():
    values = {row: row * 2 for row in range(100)}
    values.pop(7)
    value = packed_pictures(((row, picture(values[row]) if row in values else None) for row in range(100)), 120)
    slots = unpacked(value["slots"])
    assert slots[7] == -1
    assert (slots[100:] == -1).all()
    cell, across = value["cell"], value["across"]
    assert cell == 40
    sheets = sheets_of(value)
    for row, wanted in values.items():
        sheet, place = divmod(int(slots[row]), across**2)
        y, x = divmod(place, across)
        red, _, blue, alpha = sheets[sheet].getpixel((x * cell + cell // 2, y * cell + cell // 2))
        assert abs(red - wanted) < 12
        assert abs(blue - (255 - wanted)) < 12
        assert alpha == 255
        # The picture is 30 high in a cell of 40: what lies around it is transparent.
        assert sheets[sheet].getpixel((x * cell + cell // 2, y * cell))[3] == 0


def test_sheets_follow_each_other_and_later_pictures_fit_their_cells():
    first = packed_pictures([(0, picture(0, (4, 4)))], 1)
    per_sheet = first["across"] ** 2
    many = packed_pictures(
        ((row, picture(200, (4, 4) if row < per_sheet else (90, 45))) for row in range(per_sheet + 2)), per_sheet + 2
    )
    assert unpacked(many["slots"]).tolist() == list(range(per_sheet + 2))
    assert many["cell"] == 4
    assert [sheet.size for sheet in sheets_of(many)] == [(first["across"] * 4,) * 2, (8, 4)]


def test_pictures_are_held_one_sheet_at_a_time(monkeypatch: pytest.MonkeyPatch):
    drawn, when = 0, list[int]()

    def drawing() -> Iterator[tuple[int, Image.Image]]:
        nonlocal drawn
        for drawn in range(1, 2001):
            yield drawn - 1, picture(3, (2, 2))

    def keep(pictures: list[Image.Image], cell: int) -> str:
        when.append(drawn)
        return ""

    monkeypatch.setattr(payload, "_sheet", keep)
    each = packed_pictures(drawing(), 2000)["across"] ** 2
    assert when == [*range(each, 2000, each), 2000]


@pytest.mark.parametrize(("size", "shown"), [((800, 200), (PICTURE_PX, PICTURE_PX // 4)), ((3, 5), (3, 5))])
def test_large_pictures_shrink_and_small_ones_stay(size: tuple[int, int], shown: tuple[int, int]):
    large = packed_pictures([(0, picture(9, size))], 1)
    assert large["cell"] == max(shown)
    (sheet,) = sheets_of(large)
    assert sheet.getchannel("A").getbbox() == (
        (max(shown) - shown[0]) // 2, (max(shown) - shown[1]) // 2,
        (max(shown) - shown[0]) // 2 + shown[0], (max(shown) - shown[1]) // 2 + shown[1],
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1", "RGBA", "LA", "F"])
def test_pictures_of_any_mode_are_packed(mode: str):
    (sheet,) = packed_pictures([(0, Image.new(mode, (10, 10)))], 1)["sheets"]
    assert sheet.startswith("data:image/webp;base64,")


def test_no_picture_at_all():
    none = packed_pictures([(0, None)], 1)
    assert none["sheets"] == []
    assert unpacked(none["slots"]).tolist() == [-1]


def test_packed_arrays_are_little_endian():
    assert packed(np.array([1], ">i4")) == {"dtype": "int32", "data": base64.b64encode(b"\x01\0\0\0").decode()}
