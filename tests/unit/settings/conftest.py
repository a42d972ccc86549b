"""A scope that only has settings, in a module of its own, and a project folder whose experiments use it."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_MODULE = '''
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from manyscope.settings.sections import DownloadSettings, ExperimentSettings, ModelSettings, Section, TrainSettings


class Disc(Section):
    kind: Literal["disc"] = "disc"
    radius_px: PositiveInt = 3


class Ring(Section):
    kind: Literal["ring"] = "ring"
    width_px: PositiveInt = 1


class FakeDownload(DownloadSettings):
    """Where fakes come from."""

    count: PositiveInt = Field(10, description="How many.")
    folder: Path = Field(Path("raw"), description="Folder | file.")
    limit: PositiveInt | Literal["all"] = Field("all", description="Fewer than all.")
    sizes: tuple[PositiveInt, ...] = Field((1, 2), min_length=1, description="Sizes.")
    shape: Annotated[Disc | Ring, Field(discriminator="kind")] = Field(Disc(), description="The shape.")
    low: float = 0.0
    high: float = 1.0

    @model_validator(mode="after")
    def _ordered(self):
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class FakeTrain(TrainSettings):
    """How fakes train."""

    lr: Annotated[float, Field(gt=0)] = Field(0.5, description="Peak learning rate.")


class FakeSettings(ExperimentSettings):
    """One experiment with fakes."""

    download: FakeDownload = FakeDownload()
    train: FakeTrain = FakeTrain()


class Fake:
    Settings = FakeSettings
    default_settings: ClassVar[Path | None] = None


class Plugin(Fake):
    default_settings = Path(__file__).with_name("fake_scope_defaults.yaml")


class BadDefaults(Fake):
    default_settings = Path(__file__).with_name("fake_scope_bad_defaults.yaml")


class Empty:
    pass
'''
_DEFAULTS = """
model:
  name: from_defaults
  args: {width: 8, depth: 2}
train:
  lr: 0.25
  epochs: 7
"""

WriteProject = Callable[..., Path]


@pytest.fixture(scope="session")
def fake_scope(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make `fake_scope:Fake`, `:Plugin`, `:BadDefaults` and `:Empty` importable."""
    folder = tmp_path_factory.mktemp("fake_scope")
    (folder / "fake_scope.py").write_text(_MODULE)
    (folder / "fake_scope_defaults.yaml").write_text(_DEFAULTS)
    (folder / "fake_scope_bad_defaults.yaml").write_text("model:\n  name: net\ntrain:\n  lrr: 1\n")
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("fake_scope", None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_scope: None) -> WriteProject:
    """Write a project from keyword arguments, name of a file -> text, and work in it.

    `config` and `local` are config/config.yaml and config/local.yaml; every other name is an experiment.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/experiments").mkdir(parents=True)

    def write(**files: str) -> Path:
        for name, text in files.items():
            folder = "config" if name in ("config", "local") else "config/experiments"
            (tmp_path / folder / f"{name}.yaml").write_text(textwrap.dedent(text).lstrip("\n"))
        return tmp_path

    return write
