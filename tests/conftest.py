"""For all tests: properties are checked however slow or busy the machine is, and each process takes one thread."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("any_speed", deadline=None)
settings.load_profile("any_speed")

# Tests run side by side: threads that wait for a core spin, and a training of a second takes half a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")
