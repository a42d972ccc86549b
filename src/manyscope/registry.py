"""Finding a class or function by a short name, by an entry point of an installed package, or by import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from manyscope.errors import ManyscopeError, SettingsError, did_you_mean


def look_here() -> None:
    """Let a user's file in the working folder be imported, whatever program runs: Python itself does so for `python -m`
    alone. Installed packages come first."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))


def load_object(path: str) -> Any:
    """The object that an import path such as `"my_package.models:MyNet"` names.

    Raises:
        ManyscopeError: the module cannot be imported, or has no such name.
    """
    module_name, _, name = path.partition(":")
    look_here()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ManyscopeError(
            f"module {module_name!r} cannot be imported ({error})",
            place=path,
            remedy="install the package, or put its folder on PYTHONPATH or its file where you run",
        ) from error
    except ManyscopeError:
        raise
    except Exception as error:  # a user's module may do anything while it is imported
        raise ManyscopeError(
            f"module {module_name!r} fails while it is imported ({type(error).__name__}: {error})",
            place=path,
            remedy="mend the module",
        ) from error
    try:
        found = module
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        hint = did_you_mean(name, [n for n in dir(module) if not n.startswith("_")])
        raise ManyscopeError(f"module {module_name!r} has no {name!r}", place=path, remedy=hint) from error
    return found


class Registry:
    """Short names for one kind of thing, resolved only when asked for, so that listing them imports nothing.

    Args:
        kind: what the things are, for messages ("model", "reducer", …).
        names: short name -> import path.
        group: entry-point group through which installed packages add names of their own.
    """

    def __init__(self, kind: str, names: dict[str, str] | None = None, group: str | None = None) -> None:
        self.kind, self._builtin, self._group = kind, dict(names or {}), group

    @cached_property
    def paths(self) -> dict[str, str]:
        """Every short name with its import path; a built-in name wins over a plug-in's."""
        plugins = {p.name: p.value for p in entry_points(group=self._group)} if self._group else {}
        return {**plugins, **self._builtin}

    def names(self) -> list[str]:
        return sorted(self.paths)

    def path(self, name: str) -> str:
        """The import path behind a name; a name with a colon is one already.

        Raises:
            ManyscopeError: the name is unknown.
        """
        if ":" in name:
            return name
        if name not in self.paths:
            allowed = f"{', '.join(self.names())}, or an import path such as 'my_package.my_module:MyClass'"
            raise ManyscopeError(
                f"{self.kind} {name!r} is unknown", allowed=allowed, remedy=did_you_mean(name, self.names())
            )
        return self.paths[name]

    def find(self, name: str) -> Any:
        """The object itself, imported now."""
        return load_object(self.path(name))

    def make(self, name: str, *methods: str) -> Any:
        """An object of the class behind a name, made without arguments.

        Args:
            methods: that the class must have.

        Raises:
            ManyscopeError: the name is unknown, or what it names is no such class.
        """
        found = self.find(name)
        if not (isinstance(found, type) and all(hasattr(found, method) for method in methods)):
            raise ManyscopeError(
                f"{found!r} is not a {self.kind}", place=name, allowed=f"a class with {', '.join(methods)}"
            )
        return found()

    def build(self, name: str, *given: Any, place: str, **args: Any) -> Any:
        """What the object makes of these arguments; those by keyword come from the settings at `place`.

        Raises:
            ManyscopeError: the name is unknown.
            SettingsError: the object does not take its arguments.
        """
        make = self.find(name)
        try:
            return make(*given, **args)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{place}: {self.kind} {name!r} refuses them: {error}") from error


def unknown_names(named: Iterable[tuple[str, Registry, str]]) -> Iterator[str]:
    """A sentence for each name that its registry does not know.

    Args:
        named: place in the settings, registry, and the name that stands there.
    """
    for place, registry, name in named:
        try:
            registry.path(name)
        except ManyscopeError as error:
            yield f"{place}: {error}"


SCOPES = Registry("scope", group="manyscope.scopes")
