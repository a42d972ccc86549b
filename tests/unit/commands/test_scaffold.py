"""`manyscope new`: files that are valid as written, and with any one of their comments taken away."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import manyscope.commands
from manyscope.cli import main
from manyscope.commands.scaffold import write_experiment, write_scope
from manyscope.errors import ManyscopeError
from manyscope.registry import SCOPES
from manyscope.settings import Site, load_experiment, scope_settings

REPOSITORY = Path(__file__).resolve().parents[3]
TEMPLATES = Path(manyscope.commands.__file__).parent / "templates/scope"
SETTING = re.compile(r"^( *)# (\w+: .*)$")

# A scope with every kind of setting: required ones, awkward defaults, sections in sections, defaults of a plug-in.
PROBE = '''
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from manyscope.scopes.base import Scope
from manyscope.settings.sections import DownloadSettings, ExperimentSettings, ModelSettings, Section


class Inner(Section):
    """Deeper. """
    words: tuple[str, ...] = ("no", "1e3", "a: b", "#x", "", "ünï", "null", 'q"')
    nothing: str | None = None


class Outer(Section):
    """One level down."""
    deep: Inner = Field(Inner(), description="Two levels down.")
    folder: Path = Path("some folder")


class Download(DownloadSettings):
    """Where it comes from."""
    kind: Literal["slow", "Fast"] = Field(description="Which.")
    place: str = Field(description="Where.", examples=["over there"])
    outer: Outer = Outer()
    table: dict[str, Any] = {"a": [1, 2.5, True], "b": {"c": None}}


class Settings(ExperimentSettings):
    """Probed."""
    download: Download
    model: ModelSettings


class Probe(Scope[Settings]):
    name: ClassVar[str] = "probe"
    Settings = Settings
    default_settings = Path(__file__).with_name("defaults.yaml")
    download = preprocess = data = model = predict_batch = evaluate = None
'''


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "probe_scope.py").write_text(PROBE)
    (tmp_path / "defaults.yaml").write_text("train: {epochs: 3}\ndownload: {outer: {deep: {nothing: 'off'}}}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "probe_scope", raising=False)
    return "probe_scope:Probe"


def uncommented(text: str, line: int) -> str:
    lines = text.splitlines()
    lines[line] = SETTING.sub(r"\1\2", lines[line])
    return "\n".join(lines) + "\n"


def check_every_line(file: Path, tmp_path: Path) -> int:
    """Loads the file as it is, with each setting in turn, and with all at once: always the same settings."""
    text, site = file.read_text(encoding="utf-8"), Site()
    expected = load_experiment(file, site=site)
    settings = [number for number, line in enumerate(text.splitlines()) if SETTING.match(line)]
    changed = tmp_path / "changed.yaml"
    for number in settings:
        changed.write_text(uncommented(text, number), encoding="utf-8")
        assert load_experiment(changed, site=site) == expected, text.splitlines()[number]
    for number in settings:
        text = uncommented(text, number)
    changed.write_text(text, encoding="utf-8")
    assert load_experiment(changed, site=site) == expected
    return len(settings)


@pytest.mark.parametrize("scope", SCOPES.names())
def test_every_line_of_a_new_experiment_is_valid(scope: str, tmp_path: Path) -> None:
    file = write_experiment("my-test_1", scope, tmp_path / "experiments")
    assert file == tmp_path / "experiments/my-test_1.yaml"
    assert check_every_line(file, tmp_path) > 40
    settings = load_experiment(file, site=Site())
    assert (settings.scope, settings.title) == (scope, "My test 1")
    text = file.read_text(encoding="utf-8")
    for name, section in scope_settings(scope).model_fields.items():
        if name in ("scope", "title"):
            continue
        assert re.search(rf"^{name}:", text, re.MULTILINE)
        for key, info in section.annotation.model_fields.items():  # type: ignore[union-attr]
            assert re.search(rf"^  (# )?{key}:.*{re.escape((info.description or '')[:20])}", text, re.MULTILINE), key


def test_settings_of_any_kind(probe: str, tmp_path: Path) -> None:
    """Those without a default get a value that works: of another experiment of the scope, an example, a choice."""
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "a_broken_one.yaml").write_text("scope: [\n")
    (folder / "of_another_scope.yaml").write_text("scope: galaxies\nmodel: {name: invariant}\n")
    (folder / "the_other.yaml").write_text(f"scope: {probe}\nmodel: {{name: net}}\n")
    file = write_experiment("new", probe, folder)
    assert check_every_line(file, tmp_path) > 40
    settings = load_experiment(file, site=Site())
    assert settings.model.name == "net"
    assert settings.download.kind == "slow"
    assert settings.download.place == "over there"
    assert settings.download.outer.deep.nothing == "off"
    text = file.read_text(encoding="utf-8")
    assert "  # epochs: 3 " in text  # the plug-in's default, not Manyscope's
    assert "  kind: slow  # Which. One of: slow, Fast\n" in text
    assert "    deep:  # Two levels down.\n" in text


def test_a_value_that_nobody_knows_is_asked_for(probe: str, tmp_path: Path) -> None:
    file = write_experiment("new", probe, tmp_path / "experiments")
    with pytest.raises(ManyscopeError, match=r"new.yaml:\d+: model.name: found nothing \(null\), allowed: text"):
        load_experiment(file, site=Site())


def test_an_existing_experiment_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    with pytest.raises(ManyscopeError, match=r"mine.yaml: the file is there already"):
        write_experiment("mine", "galaxies", tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize("name", ["", "a b", "a.b", "../a", "a/b", "-a", "_a", "ä", "a\n"])
def test_names_that_are_no_file_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(ManyscopeError, match="cannot be the name of an experiment"):
        write_experiment(name, "galaxies", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_an_unknown_scope(tmp_path: Path) -> None:
    with pytest.raises(ManyscopeError, match=r"scope 'galaxi' is unknown.*did you mean 'galaxies'"):
        write_experiment("x", "galaxi", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_editor_finds_the_schema_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("config/experiments")
    assert "yaml-language-server" not in write_experiment("a", "galaxies", folder).read_text()
    (tmp_path / "config/schema").mkdir()
    (tmp_path / "config/schema/galaxies.schema.json").write_text("{}")
    for file in (write_experiment("b", "galaxies", folder), write_experiment("c", "galaxies", Path("elsewhere"))):
        first = file.read_text().splitlines()[0]
        link = first.removeprefix("# yaml-language-server: $schema=")
        assert (file.parent / link).resolve() == tmp_path / "config/schema/galaxies.schema.json"


def test_from_the_shell(tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(main, ["new", "experiment", "x", "--scope", "galaxies", "--folder", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"wrote {tmp_path / 'x.yaml'}\n")
    done = runner.invoke(main, ["new", "scope", "light-curves", "--folder", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, f"wrote {tmp_path / 'light-curves'}\n")
    again = runner.invoke(main, ["new", "scope", "light-curves", "--folder", str(tmp_path)])
    assert again.exit_code == 1
    assert again.output.startswith("error: ")
    assert again.output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "package", "camel"),
    [
        ("light-curves", "light_curves", "LightCurves"),
        ("x", "x", "X"),
        ("very-long-name-of-a-scope", "very_long_name_of_a_scope", "VeryLongNameOfAScope"),
        ("A1_b-c", "A1_b_c", "A1BC"),
        ("scope", "scope", "Scope"),  # as the classes that the templates import
        ("experiment", "experiment", "Experiment"),
        ("download", "download", "Download"),
    ],
)
def test_a_new_scope_is_a_package(name: str, package: str, camel: str, tmp_path: Path) -> None:
    folder = write_scope(name, tmp_path / "new")
    assert folder == tmp_path / "new" / name
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["manyscope.scopes"] == {name: f"{package}.scope:{camel}Scope"}
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [f"src/{package}"]
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert len(written) == len(list(TEMPLATES.iterdir()))
    assert not [path for path in written if "{{" in path.read_text(encoding="utf-8") or "{{" in str(path)]
    rooms = {path.name for path in (folder / "src" / package).iterdir()}
    assert rooms >= {"settings.py", "simulate.py", "data.py", "model.py", "evaluate.py", "scope.py", "defaults.yaml"}
    assert (folder / "config/experiments" / f"{name}.yaml").read_text().startswith(f"scope: {name}\n")
    for words in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", str(folder)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@given(name=st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True))
@hypothesis_settings(max_examples=30, deadline=None)
def test_any_name_makes_valid_code_or_one_error(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    made = None
    with suppress(ManyscopeError):
        made = write_scope(name, folder)
    assert [path.name for path in folder.iterdir()] == ([name] if made else [])
    if made is None:
        return
    for file in made.rglob("*.py"):
        compile(file.read_text(encoding="utf-8"), str(file), "exec")
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    module = project["entry-points"]["manyscope.scopes"][name].partition(":")[0]
    assert (made / "src" / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "cannot be the name"),
        ("1abc", "cannot be the name"),
        ("a b", "cannot be the name"),
        ("../up", "cannot be the name"),
        ("-a", "cannot be the name"),
        ("a-", "cannot be the name"),
        ("class", "no keyword of Python"),
        ("galaxies", "there is a scope 'galaxies' already"),
        ("json", "there is a Python module 'json' already"),
        ("numpy", "there is a Python module 'numpy' already"),
        ("pytorch-lightning", "there is a Python module 'pytorch_lightning' already"),
    ],
)
def test_names_that_are_no_scopes(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ManyscopeError, match=reason):
        write_scope(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(ManyscopeError, match="the folder is there already"):
        write_scope("mine", tmp_path)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_wheel_carries_the_templates(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        inside = set(wheel.namelist())
    assert {f"manyscope/commands/templates/scope/{path.name}" for path in TEMPLATES.iterdir()} <= inside
