"""For all tests: properties are checked however slow or busy the machine is."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any_speed", deadline=None)
settings.load_profile("any_speed")
