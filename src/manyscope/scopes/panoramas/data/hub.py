"""Pretrained models of the hub: fetched into a cache where there is a network, read from it everywhere else."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from manyscope.data.fetching import checksum_of
from manyscope.errors import CheckpointError, DataError
from manyscope.log import logger
from manyscope.tables.whole import explaining_full_disk, read_json

# Configuration, tokeniser, template and weights; never pickles, and nothing of folders, which hold copies for other
# programs.
_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
_LEFT = ("*/*",)
_CONFIG, _WEIGHTS, _INDEX = "config.json", "*.safetensors", "*.safetensors.index.json"
_AT = "@"  # between a name and a revision
_REMEDY = (
    "name it under download.hub.names and run `manyscope download --experiment NAME` on a machine with a network, such"
    " as a login node"
)


def fetch(names: Iterable[str], folder: Path) -> list[Path]:
    """Bring models into a cache, all but the files that an earlier call has brought; one that was cut off starts again.

    The address is that of the environment variable HF_ENDPOINT, if there is one. Without a network a model that is
    whole in the cache is as good.

    Args:
        names: OWNER/MODEL, or OWNER/MODEL@REVISION with a branch, a tag or a commit.

    Returns:
        The folder of each model's files.

    Raises:
        DataError: a model is unknown, closed, without safe weights, or cannot be fetched.
    """
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    found = []
    for name in names:
        place = f"download.hub.names: {name}"
        with explaining_full_disk(folder):
            try:
                path = Path(_snapshot(name, folder, endpoint=os.environ.get("HF_ENDPOINT") or None))
            except HFValidationError as error:
                raise DataError(
                    "no name of the hub",
                    place=place,
                    allowed="OWNER/MODEL, such as Qwen/Qwen3-0.6B, or OWNER/MODEL@REVISION",
                ) from error
            except RevisionNotFoundError as error:
                raise DataError(
                    f"the hub knows no revision {_parts(name)[1]!r} of it",
                    place=place,
                    allowed="a branch, a tag or a commit",
                ) from error
            except GatedRepoError as error:
                raise DataError(
                    "its owner lets only some users have it",
                    place=place,
                    remedy="accept the terms on the model's page, and put a token in the environment variable HF_TOKEN",
                ) from error
            except RepositoryNotFoundError as error:
                raise DataError(
                    "the hub knows no such model", place=place, remedy="check the name on the hub's page of the model"
                ) from error
            except Exception as error:  # the hub's client lets those of several libraries through
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise DataError(
                    f"cannot be fetched ({_first_line(error.__cause__ or error)})",
                    place=place,
                    remedy="run the same where there is a network, such as on a login node; whole files are kept",
                ) from error
        if lacks := _lacks(path):
            raise DataError(f"has no {lacks}", place=place, allowed="models with safetensors weights")
        size = sum(file.stat().st_size for file in path.iterdir())
        logger.info("%s: %d files, %.1f MB in %s", name, len(list(path.iterdir())), size / 1e6, folder)
        found.append(path)
    return found


def require(name: str, folder: Path) -> Path:
    """The folder with the files of a model that was fetched, or that a path names. Never uses the network.

    Args:
        name: of the hub, as `fetch` has it, or of a folder.
        folder: the cache.

    Raises:
        CheckpointError: the files are missing.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        path, remedy = local, "copy the whole folder that `save_pretrained` wrote"
    else:
        try:
            path, remedy = Path(_snapshot(name, folder, local_files_only=True)), _REMEDY
        except (OSError, ValueError) as error:  # no such entry is a FileNotFoundError, no such name a ValueError
            own, revision = _parts(name)
            cached = folder / f"models--{own.replace('/', '--')}"
            begun = any((cached / kind / (revision or "main")).exists() for kind in ("refs", "snapshots"))
            state = "is not whole" if begun else "is not there"
            raise CheckpointError(f"model {name!r} {state}", place=folder, remedy=_REMEDY) from error
    if lacks := _lacks(path):
        raise CheckpointError(f"model {name!r} has no {lacks}", place=path, remedy=remedy)
    return path


def digests(path: Path) -> dict[str, str]:
    """Name -> `sha256:…` of each file of weights in a model's folder."""
    return {file.name: checksum_of(file, "sha256") for file in sorted(path.glob(_WEIGHTS))}


def _parts(name: str) -> tuple[str, str | None]:
    """OWNER/MODEL, and the revision if the name has one."""
    own, at, revision = name.partition(_AT)
    return own, revision if at else None


def _snapshot(name: str, folder: Path, **options: Any) -> str:
    import huggingface_hub

    own, revision = _parts(name)
    return str(
        huggingface_hub.snapshot_download(
            own,
            revision=revision,
            cache_dir=folder,
            allow_patterns=list(_WANTED),
            ignore_patterns=list(_LEFT),
            **options,
        )
    )


def _lacks(path: Path) -> str:
    """A file that a model needs and the folder has not; empty if it has all."""
    if not (path / _CONFIG).is_file():
        return _CONFIG
    for index in path.glob(_INDEX):
        values: Any = read_json(index)
        for file in sorted(set(values.get("weight_map", {}).values())):
            if not (path / file).is_file():
                return str(file)
    return "" if any(path.glob(_WEIGHTS)) else "safetensors weights"


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
