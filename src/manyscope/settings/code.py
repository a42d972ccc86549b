"""A digest of the source that a stage runs, found without importing it: a change there makes the stage run again.

Followed are the import statements of the modules, also those inside functions, and import paths in text such as
"manyscope.latent.reducers:Pca", through which registries name what they hold. The files of a folder `assets` beside
a module belong to it. Of a scope's class and of its base
classes only the methods count that the stage calls. Comments, docstrings and type-only imports do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from manyscope.errors import ManyscopeError, did_you_mean
from manyscope.registry import look_here

SCOPE_METHODS: dict[str, tuple[str, ...]] = {
    "download": ("download",),
    "preprocess": ("preprocess",),
    "train": ("data", "model", "pretrained", "fit"),
    "infer": ("data", "model", "predict", "predict_batch", "exportable"),
    "gather": (),
    "umap": (),
    "index": (),
    "evaluate": ("evaluate", "data", "model"),
    "explore": ("thumbnails", "card"),
}

_PACKAGE = "manyscope"
# Settings reach a stage as data, which its rule compares anyway; messages and the version change no result.
_WITHOUT_RESULT = re.compile(r"manyscope(\.(errors|log|registry|settings)(\..*)?)?")

# Strings and trailing comments are matched to be kept as they are, so that what looks like a comment within a
# string, or like a quote within a comment, misleads nobody; comment lines and blank lines go.
_IDLE_LINE = re.compile(
    r'("""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')'
    r"|\n[ \t]*(?:#[^\n]*)?(?=\n|\Z)|(#[^\n]*)",
    re.DOTALL,
)
_PATH_TEXT = re.compile(r"""["']([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*["']""")

Span = tuple[int, int]


@dataclass(frozen=True)
class _Class:
    """A class as written: the spans of lines of its methods, the methods they refer to, and the base classes."""

    bases: tuple[tuple[str, str], ...]  # (module, class)
    methods: dict[str, tuple[Span, ...]]
    calls: dict[str, frozenset[str]]
    calls_super: frozenset[str]


@dataclass(frozen=True)
class _Module:
    """A parsed module.

    Attributes:
        lines: the source without docstrings and type-only imports; a removed line is empty.
        imports: (line, module) of each module that is imported or named by an import path.
        names: name bound by `from module import name` -> (module, name).
    """

    lines: tuple[str, ...]
    imports: tuple[tuple[int, str], ...]
    names: dict[str, tuple[str, str]]
    classes: dict[str, _Class]

    def text(self, without: Sequence[Span]) -> str:
        lines = list(self.lines)
        for first, last in without:
            lines[first - 1 : last] = [""] * (last - first + 1)
        return _IDLE_LINE.sub(lambda match: match.group(1) or match.group(2) or "", "\n" + "\n".join(lines) + "\n")

    def imported(self, without: Sequence[Span]) -> set[str]:
        return {name for line, name in self.imports if not any(first <= line <= last for first, last in without)}


def code_digest(stage: str, scope_class_path: str, import_paths: Iterable[str] = ()) -> str:
    """SHA-256, in hexadecimal, of the source that a stage runs for one scope.

    Args:
        scope_class_path: import path of the scope's class.
        import_paths: further import paths, those in the stage's settings.

    Raises:
        ManyscopeError: the stage is unknown, or a file is not Python source.
    """
    if stage not in SCOPE_METHODS:
        known = list(SCOPE_METHODS)
        raise ManyscopeError(f"stage {stage!r} is unknown", allowed=", ".join(known), remedy=did_you_mean(stage, known))
    scope_module, _, scope_class = scope_class_path.partition(":")
    unused = _unused_methods(scope_module, scope_class, SCOPE_METHODS[stage])
    extra = [path.partition(":")[0] for path in import_paths]
    followed = {_PACKAGE, _top(scope_module)} | {top for top in map(_top, extra) if not _is_installed(top)}
    return _digest([f"{_PACKAGE}.stages.{stage}", *unused, *extra], followed, unused)


def module_digest(module: str) -> str:
    """SHA-256, in hexadecimal, of a module of this package and of those of the package that it imports."""
    return _digest([module], {_PACKAGE}, {})


def _digest(start: Iterable[str], followed: Set[str], unused: Mapping[str, Sequence[Span]]) -> str:
    """Over all modules that the import statements of the followed packages reach, in the order of their names."""
    waiting = list(start)
    sources: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        module = None if name in sources or _WITHOUT_RESULT.fullmatch(name) else _module(name)
        if module is None:
            continue
        sources[name] = module.text(unused[name]) if unused.get(name) else _whole_text(name)
        if _top(name) in followed:
            waiting += [other for other in module.imported(unused.get(name, ())) if _top(other) in followed]
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(f"{name}\0{sources[name]}\0".encode())
        for asset in _assets(name):
            digest.update(asset.name.encode() + b"\0" + asset.read_bytes() + b"\0")
    return digest.hexdigest()


def _unused_methods(module_name: str, class_name: str, called: Sequence[str]) -> dict[str, list[Span]]:
    """The modules in which the class, its bases and their aliases stand, each with the lines of methods that nobody
    calls."""
    family, modules = _family(module_name, class_name)
    waiting = [*called, *(name for _, c in family for name in c.methods if name.startswith("__"))]
    used: set[tuple[int, str]] = set()
    done: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in done:
            continue
        done.add(name)
        for position, (_, owner) in enumerate(family):
            if name in owner.methods:
                used.add((position, name))
                waiting += owner.calls[name]
                if name not in owner.calls_super:
                    break  # hides the methods of that name further up
    unused: dict[str, list[Span]] = {module: [] for module in modules}
    for position, (module, owner) in enumerate(family):
        for name, spans in owner.methods.items():
            if (position, name) not in used:
                unused[module] += spans
    return unused


def _family(module_name: str, class_name: str) -> tuple[list[tuple[str, _Class]], list[str]]:
    """The class and its bases, nearest first, and the modules on the way. A class that no class statement makes has no
    family; then its module counts whole."""
    family: list[tuple[str, _Class]] = []
    modules: list[str] = []
    waiting = [(module_name, class_name)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        at = waiting.pop(0)
        module = _module(at[0])
        if at in seen or module is None:
            continue
        seen.add(at)
        found = module.classes.get(at[1])
        if found is not None:
            family.append((at[0], found))
            waiting += [base for base in found.bases if _top(base[0]) in (_PACKAGE, _top(module_name))]
        elif at[1] in module.names:
            waiting.insert(0, module.names[at[1]])
        modules.append(at[0])
    return family, list(dict.fromkeys(modules))


def _top(module: str) -> str:
    return module.partition(".")[0]


@cache
def _is_installed(top: str) -> bool:
    """Whether a package came from an index: then it changes only as a whole, and is not followed."""
    folders = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(place.is_relative_to(folder) for place in _roots(top) for folder in folders)


@cache
def _roots(top: str) -> tuple[Path, ...]:
    """The folders of a package, or the file of a module that is no package; empty if there is none of the name."""
    look_here()
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return ()
    if spec is None:
        return ()
    if spec.submodule_search_locations is not None:
        return tuple(Path(folder) for folder in spec.submodule_search_locations)
    return (Path(spec.origin),) if spec.origin and spec.origin.endswith(".py") else ()


def _file(module: str) -> Path | None:
    """The source file of a module, found on disk: asking Python would run the packages above it."""
    top, *parts = module.split(".")
    for root in _roots(top):
        if root.is_file():
            return root if not parts else None
        base = root.joinpath(*parts)
        for file in (base / "__init__.py", base.with_name(base.name + ".py")):
            if file.is_file() and (parts or file.name == "__init__.py"):
                return file
    return None


def _assets(module: str) -> list[Path]:
    """Files that a module may read at run time: those of a folder `assets` beside it."""
    file = _file(module)
    return sorted(p for p in (file.parent / "assets").rglob("*") if p.is_file()) if file else []


@cache
def _module(name: str) -> _Module | None:
    """The parsed module, or None where there is no Python source."""
    file = _file(name)
    if file is None:
        return None
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ManyscopeError(f"not Python source ({error})", place=file) from error
    return _Reader(name, file.name == "__init__.py", source).read(tree)


@cache
def _whole_text(name: str) -> str:
    module = _module(name)
    return module.text(()) if module is not None else ""


def forget_parsed() -> None:
    """Read the source afresh at the next call: for a long process in which the source changes."""
    for cached in (_module, _whole_text, _roots, _is_installed):
        cached.cache_clear()


class _Reader:
    """Collects what `_Module` holds, statement by statement; expressions need no visit."""

    def __init__(self, name: str, is_package: bool, source: str) -> None:
        self.name, self.is_package = name, is_package
        self.lines = source.splitlines()
        self.imports: list[tuple[int, str]] = []
        self.names: dict[str, tuple[str, str]] = {}
        self.classes: dict[str, _Class] = {}
        for number, line in enumerate(self.lines, 1):
            if ":" in line:
                self.imports += [(number, match.group(1)) for match in _PATH_TEXT.finditer(line)]

    def read(self, tree: ast.Module) -> _Module:
        self._block(tree, tree.body)
        for statement in tree.body:
            if isinstance(statement, ast.ClassDef):
                self.classes[statement.name] = self._class(statement)
        return _Module(tuple(self.lines), tuple(self.imports), self.names, self.classes)

    def _block(self, owner: ast.AST, body: Sequence[ast.stmt]) -> None:
        if isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            self._remove_docstring(body)
        for statement in body:
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    self._import(statement, alias.name)
                    self.names[alias.asname or _top(alias.name)] = (
                        alias.name if alias.asname else _top(alias.name),
                        "",
                    )
            elif isinstance(statement, ast.ImportFrom):
                self._import_from(statement)
            elif isinstance(statement, ast.If) and _is_type_checking(statement.test):
                self._remove(statement.body[0].lineno, statement.body[-1].end_lineno or 0)
                self._block(statement, statement.orelse)
            else:
                for inner in _blocks(statement):
                    self._block(statement, inner)

    def _import(self, statement: ast.stmt, module: str) -> None:
        self.imports.append((statement.lineno, module))

    def _import_from(self, statement: ast.ImportFrom) -> None:
        base = statement.module or ""
        if statement.level:
            parts = self.name.split(".")
            above = parts[: len(parts) - statement.level + self.is_package]
            base = ".".join([*above, base] if base else above)
        for alias in statement.names:
            inner = f"{base}.{alias.name}"
            is_module = alias.name != "*" and _file(inner) is not None if _is_near(base, self.name) else False
            self._import(statement, inner if is_module else base)
            self.names[alias.asname or alias.name] = (inner, "") if is_module else (base, alias.name)

    def _class(self, statement: ast.ClassDef) -> _Class:
        methods: dict[str, tuple[Span, ...]] = {}
        calls: dict[str, frozenset[str]] = {}
        calls_super = set()
        for item in statement.body:
            if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min(node.lineno for node in (item, *item.decorator_list))
                # A property and its setter share a name.
                methods[item.name] = (*methods.get(item.name, ()), (first, item.end_lineno or first))
                own = {statement.name, "super", *(argument.arg for argument in item.args.args[:1])}
                used = [node for node in ast.walk(item) if isinstance(node, ast.Attribute) and _owner(node) in own]
                calls[item.name] = calls.get(item.name, frozenset()) | {node.attr for node in used}
                if any(_owner(node) == "super" for node in used):
                    calls_super.add(item.name)
        bases = [base for node in statement.bases if (base := self._base(node)) is not None]
        return _Class(tuple(bases), methods, calls, frozenset(calls_super))

    def _base(self, node: ast.expr) -> tuple[str, str] | None:
        if isinstance(node, ast.Subscript):
            return self._base(node.value)
        if isinstance(node, ast.Name):
            return self.names.get(node.id, (self.name, node.id))
        if isinstance(node, ast.Attribute):
            module, _, name = ast.unparse(node).rpartition(".")
            head, dot, rest = module.partition(".")
            return (self.names.get(head, (head, ""))[0] + dot + rest, name)
        return None

    def _remove_docstring(self, body: Sequence[ast.stmt]) -> None:
        first = body[0] if body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            last = first.end_lineno or first.lineno
            before = self.lines[first.lineno - 1].encode()[: first.col_offset]
            after = self.lines[last - 1].encode()[first.end_col_offset :]
            if not before.strip() and not after.strip():
                self._remove(first.lineno, last)

    def _remove(self, first: int, last: int) -> None:
        self.lines[first - 1 : last] = [""] * (last - first + 1)


def _blocks(statement: ast.stmt) -> Iterator[Sequence[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(statement, name, [])
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def _owner(node: ast.Attribute) -> str | None:
    """`self` in `self.x`, `super` in `super().x`."""
    value = node.value.func if isinstance(node.value, ast.Call) else node.value
    return value.id if isinstance(value, ast.Name) else None


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _is_near(module: str, importer: str) -> bool:
    """Whether a module is one that could be followed; looking for the others on disk would be waste."""
    return _top(module) in (_PACKAGE, _top(importer))
