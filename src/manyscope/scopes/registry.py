"""Finding a scope by its name."""

from __future__ import annotations

from functools import cache
from typing import Any

from manyscope.errors import ManyscopeError
from manyscope.registry import SCOPES
from manyscope.scopes.base import Scope


@cache
def find_scope(name: str) -> Scope[Any]:
    """The scope of that name: built in, of an installed plug-in package, or by import path.

    Raises:
        ManyscopeError: the scope is unknown or does not follow the contract.
    """
    found = SCOPES.find(name)
    if not (isinstance(found, type) and issubclass(found, Scope)):
        raise ManyscopeError(f"scope {name!r} is {found!r}", allowed="a class derived from manyscope.scopes.base.Scope")
    return found()
