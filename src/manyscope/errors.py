"""The errors that a user can cause and mend. Every other exception is a defect of Manyscope."""

from __future__ import annotations


class ManyscopeError(Exception):
    """One line that names the place, what was found there, what is allowed, and the remedy.

    Args:
        found: what is wrong, as a short clause.
        place: file, file:line, key or id where it was found.
        allowed: what would have been accepted.
        remedy: what the user can do about it.
    """

    exit_code = 1

    def __init__(
        self, found: str, *, place: object = None, allowed: str | None = None, remedy: str | None = None
    ) -> None:
        self.found, self.place, self.allowed, self.remedy = found, place, allowed, remedy
        line = found if place is None else f"{place}: {found}"
        if allowed:
            line += f"; allowed: {allowed}"
        if remedy:
            line += f"; {remedy}"
        super().__init__(" ".join(line.split()))


class SettingsError(ManyscopeError):
    """Settings that cannot be used; holds every problem that was found, one line each."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        Exception.__init__(self, "\n".join(problems))


class DataError(ManyscopeError):
    """Input data, or a file of an earlier stage, that does not hold what it must."""

    exit_code = 3


class CheckpointError(ManyscopeError):
    """Weights that do not belong to the model, or a checkpoint that cannot be continued."""

    exit_code = 4


class MissingDependencyError(ManyscopeError):
    """An optional package, program or service that the settings ask for is not there."""

    exit_code = 5


class BusyError(ManyscopeError):
    """Another living process is working on the same files."""

    exit_code = 6


class StoppedError(ManyscopeError):
    """A signal ended the work, as a cluster sends one before it takes a node away; the same command continues."""

    exit_code = 75


def did_you_mean(word: str, known: list[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of the known words, or an empty string."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""
