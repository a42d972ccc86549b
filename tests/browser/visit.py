"""A person before a page: what their mouse and keyboard do, and what they see."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, expect

from truth import inside, star

PATIENCE_MS = 30_000  # on a busy machine; nothing is timed
MARGIN_PX = 40  # a shape stays clear of the buttons on the map
expect.set_options(timeout=PATIENCE_MS)

Open = Callable[..., "Visit"]

# Everything that a test asks of the page's program goes through the hook that the page offers.
SNAPSHOT = """() => JSON.parse(JSON.stringify(manyscope.state, (key, value) =>
  ArrayBuffer.isView(value) ? Array.from(value) : value instanceof Map ? Array.from(value) : value))"""
"""All that the user has chosen."""
_ROWS = "(rows) => rows && Array.from(rows)"
_PIXELS = """() => Array.from({ length: manyscope.source.about.objects }, (_, row) => {
  const place = manyscope.pixel(row);
  return place ? [place.x, place.y] : null;
})"""
_PICTURE = """(shown) => {
  const width = shown.naturalWidth || shown.width, height = shown.naturalHeight || shown.height;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(shown, 0, 0);
  return { width, height, bytes: Array.from(context.getImageData(0, 0, width, height).data) };
}"""


@dataclass
class Visit:
    """One page in a tab of its own.

    Attributes:
        own: beginning of all addresses that the page may ask for.
        problems: requests elsewhere, errors on the console, and scripts that failed.
    """

    page: Page
    own: str
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", self._requested)
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(f"failed: {error}"))

    def _requested(self, request: Request) -> None:
        if not request.url.startswith(("data:", "blob:")):
            self.requests.append(request.url)
            if not request.url.startswith(self.own):
                self.problems.append(f"asked for {request.url}")

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(f"logged: {message.text}")

    def open(self, address: str, wait: bool = True) -> Visit:
        self.page.goto(address)
        if wait:
            self.until("() => window.manyscope")
            self.ask("() => manyscope.ready.then(() => null)")
        return self

    # ---- what the program says ----
    def ask(self, question: str, given: Any = None) -> Any:
        return self.page.evaluate(question, given)

    def until(self, condition: str, given: Any = None) -> None:
        """Wait for a condition of the program."""
        self.page.wait_for_function(condition, arg=given)

    def answer(self, method: str, *arguments: Any) -> Any:
        """What the page's source answers."""
        return self.ask(
            """async ([method, given]) => {
                 const answer = await manyscope.source[method](...given);
                 return ArrayBuffer.isView(answer) ? Array.from(answer) : answer;
               }""",
            [method, list(arguments)],
        )

    @property
    def about(self) -> dict[str, Any]:
        return self.ask("() => manyscope.source.about")

    @property
    def columns(self) -> list[dict[str, Any]]:
        return self.about["columns"]

    def rows(self, which: str) -> list[int] | None:
        """Rows that are `passing`, `selected` or `listed`; None means what core.js says of null."""
        return self.ask(f"() => ({_ROWS})(manyscope.chosen.{which})")

    @contextmanager
    def change_of(self, place: str) -> Iterator[None]:
        """Wait, after what is done inside, until a value of the program is another one."""
        self.ask(f"() => {{ window.before = manyscope.{place}; }}")
        yield
        self.until(f"() => manyscope.{place} !== window.before")

    def frames(self) -> None:
        """Wait until what the page did so far is laid out."""
        self.ask("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def pixels(self) -> np.ndarray:
        """Where each object is drawn, (n, 2) in pixels of the page; NaN out of view."""
        places = self.ask(_PIXELS)
        return np.array([place or (np.nan, np.nan) for place in places], float).reshape(-1, 2)

    # ---- mouse and keyboard ----
    def point_at(self, place: Sequence[float]) -> None:
        # From beside: a pointer that is there already does not move.
        self.page.mouse.move(place[0] - 3, place[1] - 3)
        self.page.mouse.move(place[0], place[1])

    def drag(self, outline: Sequence[Sequence[float]]) -> None:
        self.page.mouse.move(*outline[0])
        self.page.mouse.down()
        for place in outline[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()

    def draw(self, tool: str, outline: Sequence[Sequence[float]]) -> list[int]:
        """Select with the box (two corners) or the lasso, and give the selected rows."""
        self.take(tool)
        with self.change_of("chosen.selected"):
            self.drag(outline)
        # The table of what is selected takes place from the map, which then moves.
        expect(self.page.locator("#count")).to_be_visible()
        self.frames()
        return self.rows("selected") or []

    def take(self, tool: str) -> None:
        button = self.page.locator(f"#tool-{tool}")
        if button.get_attribute("aria-pressed") != "true":
            button.click()
        expect(button).to_have_attribute("aria-pressed", "true")

    def click(self, place: Sequence[float]) -> None:
        self.take("pan")
        with self.change_of("state.focus"):
            self.point_at(place)
            self.page.mouse.click(*place)

    def colour_by(self, name: str) -> None:
        self.page.locator("#colour").select_option(name)
        self.until("(name) => (manyscope.state.colour ?? '') === name", name)

    def filter_of(self, column: str) -> Locator:
        """The panel of one column's filter, opened."""
        panel = self.page.locator(f"#filters section.filter[data-column={quoted(column)}]")
        if panel.locator("details:not([open])").count():
            panel.locator("summary").click()
        return panel

    def find(self, part: str) -> None:
        """Filter by a part of the id."""
        with self.change_of("chosen.passing"):
            self.page.locator("#find").fill(part)

    def download(self, press: Callable[[], None]) -> bytes:
        with self.page.expect_download() as waiting:
            press()
        return Path(waiting.value.path()).read_bytes()

    # ---- what is to be seen ----
    def eventually(self, holds: Callable[[], bool]) -> None:
        """Look again until something can be seen, for what the program does not tell: that it is drawn."""
        end = time.monotonic() + PATIENCE_MS / 1000
        while not holds():
            assert time.monotonic() < end, "it was never seen"
            self.page.wait_for_timeout(50)

    def shot(self, selector: str = "#map") -> np.ndarray:
        """(h, w, 3) uint8."""
        with Image.open(io.BytesIO(self.page.locator(selector).screenshot())) as image:
            return np.asarray(image.convert("RGB"))

    def picture(self, place: Locator) -> np.ndarray:
        """The picture in a canvas or an image, (h, w, 4) uint8."""
        shown = place.locator("canvas, img").first
        expect(shown).to_be_attached()
        shown.evaluate("async (shown) => { if (shown.decode) await shown.decode(); }")
        made = shown.evaluate(_PICTURE)
        return np.array(made["bytes"], np.uint8).reshape(made["height"], made["width"], 4)


def quoted(text: str) -> str:
    """A text in a selector."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\a ") + '"'


def background(shot: np.ndarray) -> np.ndarray:
    """The commonest colour."""
    colours, counts = np.unique(shot.astype(int) @ [65536, 256, 1], return_counts=True)
    return colours[counts.argmax()] // [65536, 256, 1] % 256


def apart(pixels: np.ndarray) -> np.ndarray:
    """Distance of each object's pixel to the nearest other one, (n,)."""
    far = np.linalg.norm(pixels[:, None] - pixels[None], axis=2)
    np.fill_diagonal(far, np.inf)
    return np.nanmin(np.where(np.isnan(far), np.inf, far), axis=1)


def region(visit: Visit) -> tuple[tuple[float, float], float]:
    """Where a star drawn on the map holds some of the objects, as near to a third of them as may be: its centre, and
    how far its points reach."""
    box = visit.page.locator("#map").bounding_box()
    assert box is not None
    pixels = visit.pixels()
    tried = {}
    for x, y in np.linspace([box["x"], box["y"]], [box["x"] + box["width"], box["y"] + box["height"]], 25)[1:-1]:
        for other in np.unique(pixels[:: max(1, len(pixels) // 40), 1]):
            for centre in ((x, y), (x, float(other))):
                ends = [box["width"] / 2 - abs(centre[0] - box["x"] - box["width"] / 2)]
                ends.append(box["height"] / 2 - abs(centre[1] - box["y"] - box["height"] / 2))
                reach = min(*ends, 200) - MARGIN_PX
                if reach > MARGIN_PX:
                    share = inside(pixels, star(centre, reach)).mean()
                    tried[abs(share - 1 / 3), centre] = reach
    (_, centre), reach = min(tried.items())
    return centre, reach
