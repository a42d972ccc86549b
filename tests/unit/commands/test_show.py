"""`manyscope show`: the picture of one file as a scope of its own makes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from manyscope.cli import main

SCOPE = """
import json
from pathlib import Path

from manyscope.scopes.galaxies.scope import Galaxies


class Drawing(Galaxies):
    name = "drawing"

    def show(self, settings, file):
        from matplotlib import rcParams
        from matplotlib.figure import Figure

        told = [settings.scope, settings.infer.batch_size, str(file), rcParams["axes.titlelocation"]]
        Path("told.json").write_text(json.dumps(told))
        figure = Figure(figsize=(2, 1))
        figure.text(0.1, 0.5, file.read_text())
        return figure
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the experiment `one` that draws, `mute` that does not, and the file raw/a.txt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "drawing_scope.py").write_text(SCOPE)
    (tmp_path / "config/experiments").mkdir(parents=True)
    (tmp_path / "config/config.yaml").write_text("experiments: [one, mute]\n")
    (tmp_path / "config/experiments/one.yaml").write_text("scope: drawing_scope:Drawing\ninfer: {batch_size: 17}\n")
    (tmp_path / "config/experiments/mute.yaml").write_text("scope: galaxies\n")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.txt").write_text("a file")
    return tmp_path


def show(*arguments: str, experiment: str = "one") -> Result:
    return CliRunner().invoke(main, ["show", *arguments, "--experiment", experiment])


def told(project: Path) -> list[object]:
    found: list[object] = json.loads((project / "told.json").read_text())
    return found


def test_the_picture_lies_in_the_current_folder(project: Path) -> None:
    done = show("raw/a.txt")
    assert done.exit_code == 0, done.output
    assert done.output == "a-one.png\n"
    with Image.open(project / "a-one.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (260, 130)  # the project's 130 dots an inch
    assert told(project) == ["drawing_scope:Drawing", 17, "raw/a.txt", "left"]
    assert (project / "raw/a.txt").read_text() == "a file"


def test_it_has_the_name_and_the_settings_that_were_given(project: Path) -> None:
    done = show("raw/a.txt", "--output", "new/picture.PNG", "--set", "infer.batch_size=3")
    assert done.output == "new/picture.PNG\n"
    assert (project / "new/picture.PNG").is_file()
    assert told(project)[1] == 3
    assert not (project / "a-one.png").exists()


def test_the_same_file_gives_the_same_picture_in_the_place_of_the_earlier_one(project: Path) -> None:
    show("raw/a.txt")
    first = (project / "a-one.png").read_bytes()
    show("raw/a.txt")
    assert (project / "a-one.png").read_bytes() == first
    (project / "raw/a.txt").write_text("another")
    show("raw/a.txt")
    assert (project / "a-one.png").read_bytes() != first


@pytest.mark.parametrize("output", ["a.png", "raw/../a.png", "linked.png"])
def test_the_file_itself_is_never_written(project: Path, output: str) -> None:
    (project / "a.png").write_text("a picture")
    (project / "linked.png").symlink_to("a.png")
    done = show("a.png", "--output", output)
    assert done.exit_code == 1
    assert done.output == f"error: {output}: would take the place of the file that it shows; see --output\n"
    assert (project / "a.png").read_text() == "a picture"


def test_nor_under_the_name_that_is_given_by_itself(project: Path) -> None:
    (project / "a-one.png").write_text("a picture")
    (project / "a.png").symlink_to("a-one.png")
    done = show("a.png")
    assert done.exit_code == 1
    assert "a-one.png: would take the place of the file" in done.output
    assert (project / "a-one.png").read_text() == "a picture"


@pytest.mark.parametrize(
    ("arguments", "experiment", "code", "message"),
    [
        (["raw/b.txt"], "one", 3, "raw/b.txt: there is no such file"),
        (["raw"], "one", 3, "raw: there is no such file"),
        (["raw/a.txt"], "mute", 1, "scope 'galaxies' has nothing to show"),
        (["raw/a.txt"], "on", 2, "did you mean 'one'"),
        (["raw/a.txt", "--set", "infer.batch_sizes=3"], "one", 2, "did you mean 'batch_size'"),
        (
            ["raw/a.txt", "--output", "a.jpg"],
            "one",
            1,
            "a.jpg: no name of a picture to be written; allowed: a file that",
        ),
        (["raw/a.txt", "--output", "raw"], "one", 1, "raw: no name of a picture"),
        (["raw/a.txt", "--output", "raw/a.txt/a.png"], "one", 3, "raw/a.txt/a.png"),
    ],
)
def test_one_clear_line(project: Path, arguments: list[str], experiment: str, code: int, message: str) -> None:
    done = show(*arguments, experiment=experiment)
    assert done.exit_code == code, done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    assert message in done.output
    assert not list(project.glob("*.png"))
