"""Weights are read without executing anything, and refused when they belong to another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from manyscope.errors import CheckpointError
from manyscope.training.checkpoints import load, load_weights, save, save_weights

MODEL = {"name": "mlp", "args": {}}


def mlp(width: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def test_round_trip(tmp_path: Path) -> None:
    path, module = tmp_path / "m.ckpt", mlp()
    save_weights(path, module, "tiny", MODEL)
    other = mlp()
    load_weights(path, other, "tiny", MODEL)
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    before = path.read_bytes()
    save_weights(path, module, "tiny", MODEL)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("module", "scope", "model", "message"),
    [
        (mlp(), "tiny", {"name": "cnn"}, "model 'mlp' of scope 'tiny'; allowed: model 'cnn' of scope 'tiny'"),
        (mlp(), "cells", MODEL, "allowed: model 'mlp' of scope 'cells'"),
        (mlp(5), "tiny", MODEL, r"\(3, 2\) in the file and \(5, 2\) in the model"),
        (nn.Linear(2, 3), "tiny", MODEL, "absent in the model|absent in the file"),
    ],
)
def test_weights_of_another_model(
    tmp_path: Path, module: nn.Module, scope: str, model: dict[str, str], message: str
) -> None:
    save_weights(tmp_path / "m.ckpt", mlp(), "tiny", MODEL)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(tmp_path / "m.ckpt", module, scope, model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (["a", "c"], "the weights know 'b', 'c'; allowed: those of the data, 'a', 'c'; run the stage train again"),
        (["c", "b"], "those of the data, 'c', 'b'"),
        ([f"{i:03d}" for i in range(40)], "'011' and 28 more"),
        ([], "those of the data, none"),
    ],
)
def test_weights_of_other_classes(tmp_path: Path, now: list[str], message: str) -> None:
    path = tmp_path / "m.ckpt"

    def telling(classes: Any) -> nn.Module:
        module = mlp()
        module.classes = classes
        return module

    save_weights(path, telling(["b", "c"]), "tiny", MODEL)
    load_weights(path, telling(["b", "c"]), "tiny", MODEL)
    with pytest.raises(CheckpointError, match=message):
        load_weights(path, telling(now), "tiny", MODEL)
    save_weights(path, telling(5), "tiny", MODEL)  # some have their number there
    load_weights(path, mlp(), "tiny", MODEL)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("executed",))


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load(tmp_path / "m.ckpt")


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_missing_and_broken(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="missing" if content is None else "not a readable checkpoint"):
        load(path)
    save(path, {"x": 1})
    with pytest.raises(CheckpointError, match="not a file of model weights"):
        load_weights(path, mlp(), "tiny", MODEL)
