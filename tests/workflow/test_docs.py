"""The site builds, and nothing in it points nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from workspace import REPOSITORY


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (REPOSITORY / "docs").glob("*.md")} - {"index"}
    assert all((tmp_path / "site" / page / "index.html").exists() for page in pages)


def test_links_between_files_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_figures_of_the_benchmarks_name_their_commands() -> None:
    text = (REPOSITORY / "docs/benchmarks.md").read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert "```sh" in section, section.splitlines()[0]
