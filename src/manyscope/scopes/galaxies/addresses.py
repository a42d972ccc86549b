"""Addresses of HTTP that come from a user's files."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit, urlunsplit


def what_is_wrong_with(address: str) -> str | None:
    """Why nothing can or should be fetched from an address, or None; what it says repeats no password."""
    try:
        parts = urlsplit(address)
        name, _ = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        return f"{shown(address)!r} is no address"
    if parts.username is not None or parts.password is not None:
        return f"{shown(address)!r} holds a user name or a password, which would stand in logs and tables"
    if parts.scheme not in ("http", "https") or not name:
        return f"{shown(address)!r} is no address of http or https"
    return None


def is_loopback(address: str) -> bool:
    """Whether what is sent to a valid address stays on this computer."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def without_query(address: str) -> str:
    """A valid address less its query, in which a presigned one has its token."""
    return urlunsplit((*urlsplit(address)[:3], "", ""))


def shown(address: str) -> str:
    """Any text as an address that may be shown, less all that could be a user name, a password or a token."""
    return re.sub(r"//.*@", "//…@", address, flags=re.DOTALL).partition("?")[0]
