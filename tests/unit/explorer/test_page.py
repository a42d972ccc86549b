"""The page as HTML: nothing from the data is markup, nothing asks a network, only its own programs run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from manyscope.errors import DataError
from manyscope.explorer.contents import Contents, plain_columns
from manyscope.explorer.page import PARTS, Page, render, render_served, write_page

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

    @property
    def programs(self) -> list[str]:
        return [text for attributes, text in self.scripts if "type" not in attributes]


def page(columns: pl.DataFrame | None = None, pictures: Any = (), notes: Any = (), **changes: Any) -> Page:
    table = pl.DataFrame({"flux": [1.0, 2.0, 3.0]}) if columns is None else columns
    parts: dict[str, Any] = {
        "experiment": "test",
        "scope": "fake",
        "title": "A title",
        "object_ids": ["a", "b", "c"],
        "coordinates": np.arange(6, dtype=np.float32).reshape(3, 2),
        "columns": plain_columns(table),
    }
    near = np.array([[1], [0], [0]])
    return Page(Contents(**{**parts, **changes}), near, near.astype(float), pictures, notes)


def embedded(text: str) -> dict[str, Any]:
    ((_, data),) = [s for s in Elements(text).scripts if s[0].get("id") == "data"]
    content: dict[str, Any] = json.loads(data)
    return content


def opened(text: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(embedded(text)["packed"]), -15))
    return content


def rules_of(policy: str) -> dict[str, str]:
    return dict(rule.strip().split(" ", 1) for rule in policy.split(";"))


def policy_of(text: str) -> str:
    (policy,) = [a["content"] for tag, a in Elements(text).tags if tag == "meta" and "http-equiv" in a]
    return policy or ""


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
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in elements.tags}
    own = text.replace(get_plotlyjs(), "").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert len(own) < 0.1 * len(text)
    assert not re.search(r"https?://\w|@import|url\(|XMLHttpRequest|WebSocket|\bimport\(|sendBeacon", own)


def test_policy_forbids_networks_and_names_the_two_programs_by_their_hash():
    text = render(page())
    rules = rules_of(policy_of(text))
    assert rules["default-src"] == rules["connect-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert "unsafe-inline" not in rules["script-src"]
    programs = Elements(text).programs
    assert len(programs) == 2
    for program in programs:
        assert base64.b64encode(hashlib.sha256(program.encode()).digest()).decode() in rules["script-src"]


def test_the_served_page_has_no_object_and_asks_only_where_it_came_from():
    text, policy = render_served(EVIL)
    assert embedded(text) == {"served": True}
    assert policy_of(text) == policy
    rules = rules_of(policy)
    assert rules["connect-src"] == "'self'"
    assert rules["default-src"] == "'none'"
    assert Elements(text).programs == Elements(render(page())).programs
    assert [tag for tag, _ in Elements(text).tags] == [tag for tag, _ in Elements(render(page())).tags]


def test_markup_in_the_data_is_inert_and_comes_out_as_it_went_in():
    columns = pl.DataFrame({EVIL: [EVIL, None, "b"], "long": [EVIL * 3] * 3})
    ids = [EVIL, 'a,"b"\'', "line\nbreak\u2028"]
    text = render(page(columns, notes=[EVIL], title=EVIL, experiment=EVIL, scope=EVIL, object_ids=ids))
    assert [tag for tag, _ in Elements(text).tags] == [tag for tag, _ in Elements(render(page())).tags]
    assert not any(name.startswith("on") for _, attributes in Elements(text).tags for name in attributes)
    assert "alert(1)</script>" not in text
    data = opened(text)
    assert data["ids"] == ids
    about = data["about"]
    assert [about["experiment"], about["scope"], about["title"], *about["notes"]] == [EVIL] * 4
    assert (about["columns"][0]["name"], about["columns"][0]["levels"]) == (EVIL, sorted([EVIL, "b"]))


def test_the_program_holds_every_part_and_never_writes_markup():
    (program,) = [text for text in Elements(render(page())).programs if "plotly.js" not in text]
    assert "Plotly." in program
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", program)
    folder = Path(render.__code__.co_filename).parent / "assets"
    assert sorted(path.stem for path in folder.glob("*.js")) == sorted(PARTS)
    for part in PARTS:
        assert (folder / f"{part}.js").read_text().replace("</script", "<\\/script") in program


def test_same_content_same_bytes_written_whole(tmp_path: Path):
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, page(pictures=[(1, Image.new("RGB", (9, 9)))]))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.html", "b.html"]


def test_neighbours_that_do_not_fit_are_an_error():
    whole = page()
    with pytest.raises(DataError, match="3 objects, but neighbours"):
        Page(whole.contents, whole.neighbours[:2], whole.distances[:2])
