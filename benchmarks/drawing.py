"""The page in a file with 200,000 objects beside a plain plotly figure of the same points, in Chromium that draws with
the processor alone: size, first draw, and what a user waits for after each act."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from benchmarks.measure import WORK, Row

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_OBJECTS = 200_000
_CLUSTERS = 12
_NEIGHBOURS = 10
_TIMES = 3
_SIZE = {"width": 1280, "height": 800}
_BROWSER = (
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip

# A pixel that is read back from a canvas comes only when all that was asked of the canvas before is drawn.
_START = """() => {
  const frame = () => new Promise(requestAnimationFrame);
  window.map = document.querySelector(".js-plotly-plot");
  window.finished = async () => {
    await frame();
    await frame();
    for (const canvas of map.querySelectorAll("canvas")) {
      const context = canvas.getContext("webgl");
      context?.readPixels(0, 0, 1, 1, context.RGBA, context.UNSIGNED_BYTE, new Uint8Array(4));
    }
  };
  window.drawn = () => new Promise((done) => map.once("plotly_afterplot", done)).then(finished);
  window.seconds = async (act) => {
    const [start, end] = [performance.now(), drawn()];
    act();
    await end;
    return (performance.now() - start) / 1000;
  };
  return finished();
}"""
_READY = {"ours": "() => manyscope.ready.then(() => null)", "peer": "() => null"}
_ZOOM = {
    "ours": """() => seconds(() => document.getElementById("zoom-in").click())""",
    "peer": """() => seconds(() => {
      const closer = ({ range: [a, b] }) => [a + (b - a) / 6, b - (b - a) / 6];
      const { xaxis, yaxis } = map._fullLayout;
      Plotly.relayout(map, { "xaxis.range": closer(xaxis), "yaxis.range": closer(yaxis) });
    })""",
}
_RECOLOUR = {
    "ours": """() => seconds(() => manyscope.change({ colour: "flux" }))""",
    "peer": """() => seconds(() => Plotly.restyle(map, { "marker.color": [map.data[0].customdata] }))""",
}
# What is selected is known, and drawn.
_LASSO = {
    "ours": """() => { window.selected = drawn().then(() => manyscope.chosen.selected.length); }""",
    "peer": """() => {
      window.selected = new Promise((done) => map.once("plotly_selected", (event) => done(event.points.length)))
        .then(async (number) => { await finished(); return number; });
    }""",
}


def run() -> list[Row]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        raise RuntimeError("there is no chromium; `make test-browser` installs it")
    pages = _pages(WORK / "drawing")
    found: dict[str, list[dict[str, float]]] = {side: [] for side in pages}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_BROWSER))
        for turn in range(_TIMES + 1):  # the first fills caches and does not count
            for side, file in pages.items():
                taken = _visit(browser, side, file)
                if turn:
                    found[side].append(taken)
        browser.close()
    middle = {
        side: {what: statistics.median(each[what] for each in found[side]) for what in found[side][0]} for side in pages
    }
    what = f"{_OBJECTS:,} objects"
    sizes = [pages[side].stat().st_size / 1e6 for side in ("ours", "peer")]
    return [
        Row(f"{what}: page without pictures", *sizes, "plotly", "MB"),
        *(Row(f"{what}: {act}", middle["ours"][act], middle["peer"][act], "plotly", "s") for act in middle["ours"]),
    ]


def _pages(folder: Path) -> dict[str, Path]:
    """Ours has ids, four columns and ten neighbours of each object; the plain figure ids, two columns and no more."""
    import plotly.graph_objects as go

    from manyscope.explorer.contents import Contents, plain_columns
    from manyscope.explorer.page import Page, write_page

    rng = np.random.default_rng(0)
    kind = rng.integers(0, _CLUSTERS, _OBJECTS)
    places = (rng.normal(scale=6, size=(_CLUSTERS, 2))[kind] + rng.normal(size=(_OBJECTS, 2))).astype(np.float32)
    names = [f"object-{number:06d}" for number in range(_OBJECTS)]
    table = pl.DataFrame(
        {
            "mass": rng.normal(size=_OBJECTS).astype(np.float32),
            "flux": rng.lognormal(size=_OBJECTS).astype(np.float32),
            "kind": [f"kind {number}" for number in kind],
            "split": rng.choice(["train", "validation", "test"], _OBJECTS),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    files = {side: folder / f"{side}.html" for side in ("ours", "peer")}
    contents = Contents("drawing", "made_up", "Drawing", names, places, plain_columns(table))
    near = (np.arange(_OBJECTS)[:, None] + np.arange(1, _NEIGHBOURS + 1)) % _OBJECTS
    write_page(files["ours"], Page(contents, near, rng.random(near.shape)))
    marker = {"color": table["mass"].to_numpy(), "colorscale": "Viridis", "size": 3, "showscale": True}
    x, y = places.T
    points = go.Scattergl(x=x, y=y, mode="markers", marker=marker, text=names, customdata=table["flux"].to_numpy())
    go.Figure(points, {"dragmode": "lasso"}).write_html(files["peer"], include_plotlyjs=True)
    return files


def _visit(browser: Browser, side: str, file: Path) -> dict[str, float]:
    """Seconds of each act, in a page that was opened for it."""
    page = browser.new_page(viewport=_SIZE)
    page.set_default_timeout(300_000)
    begin = time.perf_counter()
    page.goto(file.as_uri())
    page.evaluate(_READY[side])
    page.evaluate(_START)
    taken = {"first draw": time.perf_counter() - begin}
    taken["zoom"] = page.evaluate(_ZOOM[side])
    taken["recolour"] = page.evaluate(_RECOLOUR[side])
    taken["lasso of twelve moves"] = _lasso(page, side)
    page.close()
    return taken


def _lasso(page: Page, side: str) -> float:
    if side == "ours":
        page.locator("#tool-lasso").click()
    box = page.locator(".js-plotly-plot").bounding_box()
    assert box is not None
    angles = np.linspace(0, 2 * np.pi, 13)
    centre = np.array([box["x"] + box["width"] / 2, box["y"] + box["height"] / 2])
    outline = (centre + 150 * np.column_stack([np.cos(angles), np.sin(angles)])).tolist()
    page.evaluate(_LASSO[side])
    begin = time.perf_counter()
    page.mouse.move(*outline[0])
    page.mouse.down()
    for place in outline[1:]:
        page.mouse.move(*place)
    page.mouse.up()
    number = page.evaluate("() => selected")
    if not 0 < number < _OBJECTS:
        raise RuntimeError(f"the lasso on {side} selected {number} objects")
    return time.perf_counter() - begin
