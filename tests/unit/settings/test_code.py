"""Which changes of the source change a stage's digest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from manyscope.errors import ManyscopeError
from manyscope.settings.code import SCOPE_METHODS, code_digest, forget_parsed, module_digest
from manyscope.settings.sections import STAGES

_NUMBER = count()

FILES = {
    "__init__.py": "",
    "base.py": """
        from manyscope.scopes.base import Scope

        class Base(Scope):
            def thumbnails(self, prepared, files, objects):
                from PKG.pictures import draw
                return draw(objects)

            def evaluate(self, *args):
                from PKG.base_evaluation import judge
                return judge(args)
        """,
    "scope.py": '''
        """A scope."""
        from __future__ import annotations
        from typing import TYPE_CHECKING
        import PKG.always
        from PKG.base import Base
        if TYPE_CHECKING:
            from PKG.typed import Type

        class Mine(Base):
            """Of mine."""
            Settings = None

            def download(self, settings, raw):
                """Fetch."""
                from PKG import fetch
                return fetch.get(settings.evaluate)

            def preprocess(self, settings, raw, manifest, prepared):
                return self._prepare(raw)

            def _prepare(self, raw):
                from .preparing import prepare
                return prepare(raw)

            def data(self, settings, prepared):
                from PKG.dataset import Data
                return Data(prepared)

            def model(self, settings, data):
                from PKG.registry import MODELS
                return MODELS[settings.model.name]

            def predict_batch(self, settings, model, batch):
                return model(batch)

            def evaluate(self, *args):
                return super().evaluate(*args)
        ''',
    "always.py": "x = 1\n",
    "typed.py": "class Type: pass\n",
    "fetch.py": '''
        def get(x):
            """Say what."""
            text = """
            # not a comment

            """
            return text  # a remark
        ''',
    "preparing.py": "try:\n    from PKG.deep import deeper\nexcept ImportError:\n    deeper = None\nprepare = deeper\n",
    "deep.py": "def deeper(raw):\n    return raw\n",
    "dataset.py": "class Data: pass\n",
    "registry.py": 'MODELS = {"net": "PKG.net:Net"}\n',
    "net.py": "class Net: pass\n",
    "pictures.py": "def draw(ids): return ids\n",
    "base_evaluation.py": "def judge(args): return args\n",
    "custom.py": "class MyNet: pass\n",
    "unused.py": "",
}

Digests = dict[str, str]


class Package:
    def __init__(self, folder: Path) -> None:
        self.name = f"fakeplugin{next(_NUMBER)}"
        self.folder = folder / self.name
        self.folder.mkdir()
        for name, text in FILES.items():
            lines = text.strip("\n").splitlines()
            indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
            self.write(name, "".join(line[indent:] + "\n" for line in lines).replace("PKG", self.name))

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        forget_parsed()

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def digests(self, *paths: str) -> Digests:
        return {stage: code_digest(stage, f"{self.name}.scope:Mine", paths) for stage in STAGES}

    def changed_by(self, change: Callable[[], None], *paths: str) -> set[str]:
        before = self.digests(*paths)
        change()
        after = self.digests(*paths)
        return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    monkeypatch.syspath_prepend(str(tmp_path))
    forget_parsed()
    yield Package(tmp_path)
    forget_parsed()


def test_every_stage_has_its_methods() -> None:
    assert tuple(SCOPE_METHODS) == STAGES


def test_nothing_is_imported(package: Package) -> None:
    package.digests(f"{package.name}.custom:MyNet")
    assert not [name for name in sys.modules if name.startswith(package.name)]


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("always.py", set(STAGES)),
        ("typed.py", set()),
        ("unused.py", set()),
        ("fetch.py", {"download"}),
        ("preparing.py", {"preprocess"}),
        ("deep.py", {"preprocess"}),
        ("dataset.py", {"train", "infer", "evaluate"}),
        ("registry.py", {"train", "infer", "evaluate"}),
        ("net.py", {"train", "infer", "evaluate"}),
        ("pictures.py", {"explore"}),
        ("base_evaluation.py", {"evaluate"}),
    ],
)
def test_a_module_counts_for_the_stages_that_reach_it(file: str, stages: set[str], package: Package) -> None:
    def change() -> None:
        package.write(file, (package.folder / file).read_text() + "changed = True\n")

    assert package.changed_by(change) == stages


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("return fetch.get(settings.evaluate)", "return None", {"download"}),
        ("return prepare(raw)", "return prepare(raw, 1)", {"preprocess"}),
        ("return model(batch)", "return model(batch)[0]", {"infer"}),
        ("Settings = None", "Settings = 1", set(STAGES)),
        ("super().evaluate(*args)", "super().evaluate(args)", {"evaluate"}),
        ('"""Fetch."""', '"""Fetch it."""', set()),
        ('"""A scope."""', '"""A fine scope."""', set()),
        ('"""Of mine."""', "", set()),
        ("    def download", "    # why\n\n    def download", set()),
        (".typed import Type", ".unused import Other", set()),
    ],
)
def test_a_change_in_the_scope_itself(old: str, new: str, stages: set[str], package: Package) -> None:
    assert package.changed_by(lambda: package.change("scope.py", old, new)) == stages


@pytest.mark.parametrize(
    ("old", "new", "matters"),
    [
        ("    return text", "    # a comment\n\n\n    return text", False),
        ('"""Say what."""', '"""Say\n\n    more.\n    """', False),
        ("def get", "# above\n# two lines\n\ndef get", False),
        ("# not a comment", "# still text", True),
        ("comment\n\n", "comment\n\n\n", True),
        ("return text", "return text + ''", True),
    ],
)
def test_comments_blank_lines_and_docstrings_do_not_count(old: str, new: str, matters: bool, package: Package) -> None:
    assert package.changed_by(lambda: package.change("fetch.py", old, new)) == ({"download"} if matters else set())


def test_quotes_in_comments_and_hashes_in_strings_mislead_nobody(package: Package) -> None:
    package.write("fetch.py", 'a = 1  # """\n# one\nb = "#"  # it\'s\nc = \'"""\'\n# two\nd = 1\n# """\n')
    before = package.digests()["download"]
    package.write("fetch.py", 'a = 1  # """\nb = "#"  # it\'s\n\nc = \'"""\'\n# two changed\nd = 1\n')
    assert package.digests()["download"] == before
    package.write("fetch.py", 'a = 1  # """\nb = "# "  # it\'s\nc = \'"""\'\nd = 1\n')
    assert package.digests()["download"] != before


def test_overriding_a_method_frees_from_the_base(package: Package) -> None:
    package.change("scope.py", "return super().evaluate(*args)", "return args")
    assert package.changed_by(lambda: package.write("base_evaluation.py", "judge = None\n")) == set()


def test_fit_and_predict_of_the_base_count_unless_replaced(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    from manyscope.settings import code

    read = code._module

    def altered(stage: str) -> set[str]:
        """The stages whose digest hangs on manyscope.training.<stage>."""
        before = package.digests()
        forget_parsed()
        hidden = f"manyscope.training.{stage}"
        monkeypatch.setattr(code, "_module", lambda name: None if name == hidden else read(name))
        after = package.digests()
        monkeypatch.setattr(code, "_module", read)
        forget_parsed()
        return {name for name in STAGES if before[name] != after[name]}

    assert "train" in altered("fit")
    assert "infer" in altered("predict")
    package.change("scope.py", "def data(", "def fit(self, *args):\n        return args\n\n    def data(")
    assert "train" not in altered("fit")


def test_import_paths_in_the_settings_count(package: Package) -> None:
    path = f"{package.name}.custom:MyNet"
    assert package.changed_by(lambda: package.write("custom.py", "class MyNet: x = 1\n"), path) == set(STAGES)
    assert package.changed_by(lambda: package.write("custom.py", "class MyNet: x = 2\n")) == set()


def test_import_path_of_another_package_is_followed_unless_installed(package: Package, tmp_path: Path) -> None:
    top = f"{package.name}_single"
    (tmp_path / f"{top}.py").write_text("class Net: pass\n")
    forget_parsed()
    before = package.digests(f"{top}:Net")
    assert before != package.digests()
    (tmp_path / f"{top}.py").write_text("class Net: x = 1\n")
    forget_parsed()
    assert package.digests(f"{top}:Net") != before
    installed = package.digests("ruamel.yaml.main:YAML")
    assert installed != package.digests()
    assert installed != package.digests("ruamel.yaml.nodes:Node")
    assert package.digests("no_such_package_at_all:X", "math:sqrt") == package.digests()


def test_class_that_is_imported_or_made_by_a_call_is_found(package: Package) -> None:
    package.write("plugin.py", f"from {package.name}.scope import Mine as Alias\nmade = type('Made', (Alias,), {{}})\n")
    alias = {stage: code_digest(stage, f"{package.name}.plugin:Alias") for stage in STAGES}
    made = code_digest("gather", f"{package.name}.plugin:made")
    package.write("fetch.py", "get = None\n")
    after = {stage: code_digest(stage, f"{package.name}.plugin:Alias") for stage in STAGES}
    assert {stage for stage in STAGES if alias[stage] != after[stage]} == {"download"}
    assert code_digest("gather", f"{package.name}.plugin:made") != made  # whole, as its methods are not known


def test_same_source_gives_the_same_digest(package: Package) -> None:
    before = package.digests()
    forget_parsed()
    assert package.digests() == before
    assert all(len(digest) == 64 for digest in before.values())


def test_unknown_stage_and_broken_source(package: Package) -> None:
    with pytest.raises(ManyscopeError, match=r"stage 'trian' is unknown; allowed: .*; did you mean 'train'\?"):
        code_digest("trian", f"{package.name}.scope:Mine")
    package.write("always.py", "def (\n")
    with pytest.raises(ManyscopeError, match=r"always\.py: not Python source"):
        package.digests()


def test_digest_of_one_module_follows_its_imports() -> None:
    assert module_digest("manyscope.tables.manifest") != module_digest("manyscope.tables.parquet")
    assert module_digest("manyscope.settings.loading") == module_digest("manyscope.errors")  # neither counts
