"""What the chain asks of the scope, before any training and before any answer."""

from __future__ import annotations

import hashlib
import json

import pytest

from manyscope.errors import CheckpointError
from manyscope.scopes.panoramas.scope import Panoramas as Scope
from small_pano import small_settings


@pytest.fixture
def pretrained(tmp_path):
    """Settings that name two models whose files of weights are called the same, and the folder of each."""
    folders = [tmp_path / name for name in ("eyes", "mouth")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(folder.name.encode())
    changes = [f"model.{p}.pretrained={f}" for p, f in zip(("vision", "language"), folders, strict=True)]
    return small_settings(*changes), folders


def test_rooms_must_be_enough_to_be_judged():
    def said(count):
        return [line for line in Scope().problems(small_settings(f"download.rooms.test={count}")) if "rooms" in line]

    assert said(4) == ["download.rooms.test: 4 pictures give no interval; allowed: at least 5"]
    assert not said(5)


def test_files_of_the_same_name_are_told_apart(pretrained):
    settings, folders = pretrained
    assert Scope().pretrained(settings) == {
        f"{folder}/model.safetensors": f"sha256:{hashlib.sha256(folder.name.encode()).hexdigest()}"
        for folder in folders
    }


def test_a_model_answers_with_the_files_that_it_was_trained_with(pretrained, prepared, tmp_path):
    settings, (_, mouth) = pretrained
    weights = tmp_path / "results" / "train" / "model.ckpt"
    weights.parent.mkdir(parents=True)

    def answer():
        next(Scope().predict(settings, prepared, weights, [], tmp_path))

    record = {"pretrained": dict(Scope().pretrained(settings))}
    weights.with_name("run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError) as caught:  # of the files themselves, which are none
        answer()
    assert "trained with" not in str(caught.value)
    (mouth / "model.safetensors").write_bytes(b"another")
    with pytest.raises(CheckpointError, match=r"run\.json: .* not trained with .*mouth/model\.safetensors as it is"):
        answer()
