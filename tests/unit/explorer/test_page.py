"""The page: what it embeds comes out as it went in, nothing from the data is markup, nothing asks a network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from datetime import date, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from plotly.offline import get_plotlyjs

from manyscope.errors import DataError
from manyscope.explorer.page import Page, render, write_page
from manyscope.explorer.payload import PICTURE_PX, packed, packed_columns, packed_pictures

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--"


class Elements(HTMLParser):
    """Start tags with their attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.in_script = False
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

        self.in_script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self.in_script = False

    def handle_data(self, data: str) -> None:
        if self.in_script:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


def page(n: int = 5, dimensions: int = 2, **changes: Any) -> Page:
    rng = np.random.default_rng(0)
    k = min(2, n - 1)
    content: dict[str, Any] = {
        "title": "A title",
        "experiment": "test",
        "scope": "fake",
        "object_ids": [f"object-{i}" for i in range(n)],
        "coordinates": rng.normal(size=(n, dimensions)),
        "columns": pl.DataFrame({"flux": rng.normal(size=n), "kind": ["a"] * n}),
        "neighbours": np.array([[j for j in range(n) if j != i][:k] for i in range(n)]).reshape(n, k),
        "distances": rng.random((n, k)),
    }
    return Page(**{**content, **changes})


def embedded(text: str) -> dict[str, Any]:
    ((_, data),) = [s for s in Elements(text).scripts if s[0].get("id") == "data"]
    return json.loads(data)


def unpacked(value: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"]).newbyteorder("<"))


@pytest.mark.parametrize(("n", "dimensions"), [(1, 2), (3, 2), (3, 3), (50, 3)])
def test_data_round_trips(n: int, dimensions: int):
    given_page = page(n, dimensions)
    data = embedded(render(given_page))
    assert data["ids"] == given_page.object_ids
    np.testing.assert_array_equal(
        np.stack([unpacked(a) for a in data["coordinates"]], 1), given_page.coordinates.astype(np.float32)
    )
    np.testing.assert_array_equal(unpacked(data["neighbours"]).reshape(n, -1), given_page.neighbours)
    np.testing.assert_array_equal(
        unpacked(data["distances"]).reshape(n, -1), np.asarray(given_page.distances, np.float32)
    )
    flux, kind = data["columns"]
    np.testing.assert_allclose(unpacked(flux["values"]), given_page.columns["flux"], rtol=1e-6)
    assert (kind["levels"], unpacked(kind["codes"]).tolist()) == (["a"], [0] * n)
    assert unpacked(data["pictures"]["slots"]).tolist() == [-1] * n


def test_nothing_is_loaded_from_anywhere():
    text = render(page(pictures=[(0, Image.new("RGB", (8, 8)))]))
    elements = Elements(text)
    loading = [
        (tag, name, value)
        for tag, attributes in elements.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert loading == []
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in elements.tags}
    own = text.replace(get_plotlyjs(), "")
    assert len(own) < 0.05 * len(text)
    assert not re.search(r"https?:|//\w+\.\w|@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon", own)


def test_policy_forbids_networks_and_names_the_two_programs_by_their_hash():
    elements = Elements(render(page()))
    (policy,) = [a["content"] for tag, a in elements.tags if tag == "meta" and "http-equiv" in a]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert "unsafe-inline" not in rules["script-src"]
    programs = [text for attributes, text in elements.scripts if "type" not in attributes]
    assert len(programs) == 2
    for text in programs:
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in rules["script-src"]


def test_markup_in_the_data_is_inert_and_comes_out_as_it_went_in():
    columns = pl.DataFrame({EVIL: [EVIL, None, "b"], "long": [EVIL * 3] * 3})
    ids = [EVIL, 'a,"b"\'', "line\nbreak\u2028"]
    evil = page(3, title=EVIL, experiment=EVIL, scope=EVIL, object_ids=ids, columns=columns, notes=[EVIL])
    text = render(evil)
    plain = render(page(3))
    assert [tag for tag, _ in Elements(text).tags] == [tag for tag, _ in Elements(plain).tags]
    assert not any(name.startswith("on") for _, attributes in Elements(text).tags for name in attributes)
    assert "alert(1)</script>" not in text
    data = embedded(text)
    assert data["ids"] == ids
    assert data["notes"] == [EVIL]
    assert [data["experiment"], data["scope"]] == [EVIL, EVIL]
    assert data["columns"][0]["name"] == EVIL
    assert data["columns"][0]["levels"] == sorted([EVIL, "b"])
    assert unpacked(data["columns"][0]["codes"]).tolist() == [0, -1, 1]


def test_the_program_never_writes_markup():
    (program,) = [text for a, text in Elements(render(page())).scripts if "type" not in a and "plotly.js" not in text]
    assert "Plotly.react" in program
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", program)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), min_size=1, max_size=20))
def test_numbers_keep_six_digits_of_their_range_and_missing_ones_stay_missing(values: list[float | None]):
    (column,) = packed_columns(pl.DataFrame({"x": pl.Series(values, dtype=pl.Float64)}))
    wanted = np.array([np.nan if v is None else v for v in values])
    found = unpacked(column["values"]).astype(np.float64)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~finite], wanted[~finite])
    with np.errstate(over="ignore"):
        span = np.ptp(wanted[finite]) if finite.any() else 0.0
    assert (np.abs(found[finite] - wanted[finite]) <= 1e-6 * span).all()


def test_columns_are_sorted_into_kinds():
    n = 300
    table = pl.DataFrame(
        {
            "float": np.linspace(0, 1, n),
            "day": 58849.0 + np.arange(n) / 1e6,
            "count": np.arange(n),
            "large": np.arange(n) + 2**40,
            "few": [10, 9, 2] * 100,
            "flag": [True, None, False] * 100,
            "level": ["b", "a", None] * 100,
            "name": [f"n{i}" for i in range(n)],
            "date": [date(2020, 1, 1) + timedelta(days=i) for i in range(n)],
            "none": [None] * n,
            "empty": pl.Series([None] * n, dtype=pl.Float64),
            "vector": np.zeros((n, 3)),
            "list": [[1]] * n,
            "struct": [{"a": 1}] * n,
            "bytes": [b"x"] * n,
        }
    )
    columns = {c["name"]: c for c in packed_columns(table)}
    kinds = {name: column["kind"] for name, column in columns.items()}
    assert kinds == {
        **dict.fromkeys(["float", "day", "count", "large", "empty"], "number"),
        **dict.fromkeys(["few", "flag", "level", "none"], "category"),
        **dict.fromkeys(["name", "date"], "text"),
    }
    assert columns["float"]["values"]["dtype"] == "float32"
    assert columns["day"]["values"]["dtype"] == "float64"
    np.testing.assert_array_equal(unpacked(columns["large"]["values"]), np.arange(n) + 2.0**40)
    assert columns["few"]["levels"] == ["2", "9", "10"]
    assert unpacked(columns["few"]["codes"])[:3].tolist() == [2, 1, 0]
    assert unpacked(columns["flag"]["codes"])[:3].tolist() == [1, -1, 0]
    assert columns["none"]["levels"] == []
    assert np.isnan(unpacked(columns["empty"]["values"])).all()
    assert columns["date"]["values"][1] == "2020-01-02"


def picture(value: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, (value, 0, 255 - value))


def test_pictures_decode_from_their_cells():
    values = {row: row * 2 for row in range(100)}
    values.pop(7)
    packed_value = packed_pictures(((row, picture(values[row]) if row in values else None) for row in range(100)), 120)
    slots = unpacked(packed_value["slots"])
    assert slots[7] == -1
    assert (slots[100:] == -1).all()
    cell, across = packed_value["cell"], packed_value["across"]
    assert cell == 40
    sheets = [
        Image.open(io.BytesIO(base64.b64decode(s.removeprefix("data:image/webp;base64,"))))
        for s in packed_value["sheets"]
    ]
    for row, value in values.items():
        sheet, place = divmod(int(slots[row]), across**2)
        y, x = divmod(place, across)
        red, _, blue, alpha = sheets[sheet].convert("RGBA").getpixel((x * cell + cell // 2, y * cell + cell // 2))
        assert abs(red - value) < 12
        assert abs(blue - (255 - value)) < 12
        assert alpha == 255
        # The picture is 30 high in a cell of 40: what lies around it is transparent.
        assert sheets[sheet].convert("RGBA").getpixel((x * cell + cell // 2, y * cell))[3] == 0


def test_more_pictures_than_a_sheet_holds_go_on_the_next_and_large_ones_shrink():
    many = packed_pictures(((row, picture(0, (4, 4))) for row in range(401)), 401)
    assert len(many["sheets"]) == 2
    assert unpacked(many["slots"]).tolist() == list(range(401))
    large = packed_pictures([(0, picture(9, (800, 200)))], 1)
    assert large["cell"] == PICTURE_PX


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "1", "RGBA", "LA", "F"])
def test_pictures_of_any_mode_are_packed(mode: str):
    (sheet,) = packed_pictures([(0, Image.new(mode, (10, 10)))], 1)["sheets"]
    assert sheet.startswith("data:image/webp;base64,")


def test_no_picture_at_all():
    none = packed_pictures([(0, None)], 1)
    assert none["sheets"] == []


def test_same_content_same_bytes_written_whole(tmp_path: Path):
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, page(pictures=[(1, picture(3))]))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.html", "b.html"]


def test_parts_that_do_not_fit_are_an_error():
    with pytest.raises(DataError, match="2 objects, but coordinates"):
        page(3, object_ids=["a", "b"])
    with pytest.raises(DataError, match="coordinates"):
        page(3, dimensions=4)


def test_packed_arrays_are_little_endian():
    assert packed(np.array([1], ">i4")) == {"dtype": "int32", "data": base64.b64encode(b"\x01\0\0\0").decode()}
