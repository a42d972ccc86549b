"""Chromium, and one run of the workflow on the tiny experiments of all scopes, for the tests of this folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from truth import Truth
from visit import Open, Visit
from workspace import Workspace, kill_tree, make_workspace

SCOPES = ("cells", "galaxies", "neutrinos", "panoramas", "scenes")
TARGETS = ("explore/index.html", "index/audit.json", "evaluate/metrics.json")
SIZE = {"width": 1280, "height": 800}
# Drawn by the processor, so that a machine needs no graphics card; and nothing that asks a network by itself.
ARGUMENTS = (
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip


@pytest.fixture(scope="session")
def chromium() -> str:
    program = os.environ.get("MANYSCOPE_CHROMIUM") or shutil.which("chromium")
    if not program:
        missing = "Chromium is not installed (make test-browser installs it)"
        if os.environ.get("MANYSCOPE_CHROMIUM_NEEDED"):
            pytest.fail(missing)
        pytest.skip(missing)
    return program


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens a page from a file, or from an address on this machine, in a browser that was never used before. At the end
    the test fails if a page asked for anything but itself, or for what is not on its server, or logged an error."""
    contexts, visits = [], []

    def open_page(place: Path | str, *, wait: bool = True, fragment: str = "", **options: object) -> Visit:
        context = browser.new_context(viewport=SIZE, accept_downloads=True, **options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        contexts.append(context)
        address = place.resolve().as_uri() if isinstance(place, Path) else place
        own = address if isinstance(place, Path) else "/".join(address.split("/")[:3]) + "/"
        visits.append(Visit(context.new_page(), own))
        return visits[-1].open(address + fragment, wait=wait)

    yield open_page
    for context in contexts:
        context.close()
    assert [problem for visit in visits for problem in visit.problems] == []


@pytest.fixture(scope="session")
def workspace(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """All scopes' tiny experiments, finished. MANYSCOPE_WORKSPACE names a folder in which they stay for the next run,
    which then repeats only what has changed."""
    kept = os.environ.get("MANYSCOPE_WORKSPACE")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("browser") / "work"
    made = Workspace(folder) if folder.exists() else make_workspace(folder, shards=1, experiments=SCOPES)
    targets = [f"results/{scope}/{file}" for scope in SCOPES for file in TARGETS]
    made.snakemake("--profile", "workflow_profiles/local", *targets, "results/index.html")
    return made


@pytest.fixture(scope="session")
def truths(workspace: Workspace) -> dict[str, Truth]:
    return {scope: Truth(workspace, scope) for scope in SCOPES}


@pytest.fixture(params=SCOPES)
def truth(request: pytest.FixtureRequest, truths: dict[str, Truth]) -> Truth:
    """Each scope's experiment in turn."""
    return truths[request.param]


@pytest.fixture
def static(visit: Open, truth: Truth) -> Visit:
    """The page of that experiment, opened from its file."""
    return visit(truth.paths.page)


@pytest.fixture(scope="session")
def serve(workspace: Workspace) -> Iterator[Callable[..., str]]:
    """Starts `manyscope explore` for some experiments, and gives the address that it prints."""
    processes = []

    def start(*experiments: str) -> str:
        process = workspace.start("explore", *experiments, "--port", "0")
        processes.append(process)
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                return found[0]
        pytest.fail(f"the server ended with {process.wait()}\n{''.join(said)}")

    yield start
    for process in processes:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
        if process.poll() is None:
            kill_tree(process)
