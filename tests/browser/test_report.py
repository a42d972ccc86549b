"""The page inside Snakemake's report, where it is shown in a frame.

In a report of one file (`--report report.html`) the frame's address holds the whole page, and Chromium opens no such
address of more than 2 MiB: Plotly alone has more. In a report of a folder (`--report report.zip`) it is a file.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from truth import Truth
from visit import Open
from workspace import Workspace


def test_the_page_works_inside_the_report(
    visit: Open, workspace: Workspace, truths: dict[str, Truth], tmp_path: Path
) -> None:
    truth = truths["scenes"]
    workspace.snakemake("--report", str(tmp_path / "report.zip"), str(truth.paths.page.relative_to(workspace.folder)))
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        archive.extractall(tmp_path)
    report = visit(tmp_path / "report" / "report.html", wait=False)
    report.own = tmp_path.resolve().as_uri()  # the report and its files, nothing else
    page = report.page
    page.get_by_role("link", name="Results").click()
    page.get_by_role("link", name="scenes").click()
    page.locator("tr", has_text="page to explore").get_by_role("link").first.click()
    frame = page.wait_for_selector("iframe").content_frame()
    assert frame is not None
    frame.wait_for_function("() => window.manyscope")
    assert frame.evaluate("() => manyscope.ready.then(() => manyscope.source.about.objects)") == len(truth.ids)
    assert len([address for address in report.requests if address.endswith("/index.html")]) == 1
    # The frame's pixels are those of its map: every object is drawn.
    box = frame.locator("#map").bounding_box()
    assert box is not None
    shot = report.shot("iframe").astype(int)
    outer = page.locator("iframe").bounding_box()
    assert outer is not None
    left, top = box["x"] - outer["x"], box["y"] - outer["y"]
    places = frame.evaluate(
        """() => {
             const { left, top } = document.getElementById("map").getBoundingClientRect();
             return Array.from({ length: manyscope.source.about.objects }, (_, row) => manyscope.pixel(row))
               .map(({ x, y }) => [x - left, y - top]);
           }"""
    )
    x, y = np.round(np.add(places, [left, top])).astype(int).T
    paper = shot[round(top) + 3, round(left) + round(box["width"] / 2)]
    assert (np.abs(shot[y, x] - paper).max(1) > 30).mean() > 0.9
    # A click shows the object's neighbours, which the page holds itself.
    page.mouse.click(outer["x"] + float(x[0]), outer["y"] + float(y[0]))
    frame.wait_for_selector("#object .strip button[data-id]")
