"""The scope as the chain sees it: its experiments, what it says before any hour is spent, and how files are dealt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from manyscope.errors import DataError
from manyscope.scopes.neutrinos.data.detector import built_in_detector
from manyscope.scopes.neutrinos.data.prepare import deal
from manyscope.scopes.neutrinos.data.sources import EventFile, Events, find_source
from manyscope.scopes.neutrinos.model import build_model, input_form
from manyscope.scopes.neutrinos.scope import Neutrinos
from manyscope.scopes.neutrinos.settings import NeutrinosPreprocess, NeutrinosSettings

REPOSITORY = Path(__file__).resolve().parents[3]


def load(file: str) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "config" / file)
    return values


@pytest.mark.parametrize("file", ["experiments/neutrinos.yaml", "test/neutrinos.yaml"])
def test_experiments_are_valid_and_without_problems(file: str) -> None:
    assert list(Neutrinos().problems(NeutrinosSettings(**load(file)))) == []


def test_the_full_size_network_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    values = load("experiments/neutrinos_a100.yaml")
    settings = NeutrinosSettings(**values)
    assert settings.download.source == "kaggle"
    model = build_model(settings.model)
    assert sum(p.numel() for p in model.parameters()) > 2e7
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert input_form(settings.model).kind == "packed"
    heads = values["model"]["args"]["pulse_heads"]
    assert values["model"]["args"]["pulse_width"] // heads >= 16, "FlexAttention's kernel wants 16 dimensions in a head"
    assert settings.model.input.max_pulses <= input_form(settings.model).size


def test_problems_are_found_before_anything_runs() -> None:
    settings = NeutrinosSettings(
        scope="neutrinos",
        download={"source": "files", "simulated": {"geometry_file": "nowhere.csv"}},
        model={"name": "transfomer"},
    )
    problems = list(Neutrinos().problems(settings))
    assert [p.split(":")[0] for p in problems] == ["model.name", "download.files"]
    simulated = NeutrinosSettings(
        scope="neutrinos",
        download={
            "simulated": {"geometry_file": "nowhere.csv"},
            "files": [{"name": "a", "layout": "prometheus", "pulses": "nothing.parquet"}],
        },
    )
    problems = list(Neutrinos().problems(simulated))
    assert [p.split(":")[0] for p in problems] == ["download.files[0].pulses", "download.simulated.geometry_file"]


def test_sources_are_found_by_name() -> None:
    for name in ("simulated", "kaggle", "files"):
        assert callable(find_source(name).files)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_batches": [1]}, "must both be given"),
        ({"validation_batches": [1, 2], "test_batches": [2]}, "batch 2 is in"),
    ],
)
def test_batches_of_two_splits_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NeutrinosPreprocess(**values)


def files(count: int, unlabelled: int = 0) -> list[EventFile]:
    def unread() -> Events:
        raise AssertionError("dealing reads no file")

    detector = built_in_detector()
    labelled = [EventFile(f"batch-{n:06d}", n, True, detector, unread) for n in range(1, count + 1)]
    return labelled + [EventFile(f"test-{n}", n, False, detector, unread) for n in range(unlabelled)]


def test_a_further_file_moves_no_other() -> None:
    settings = NeutrinosPreprocess(validation_fraction=0.2, test_fraction=0.3)
    few, many = deal(files(40), settings), deal(files(400, unlabelled=3), settings)
    assert few.items() <= many.items()
    shares = {name: sum(split == name for split in many.values()) for name in ("train", "validation", "test")}
    assert 100 < shares["test"] < 140
    assert 60 < shares["validation"] < 100
    assert sum(split == "unlabelled" for split in many.values()) == 3


def test_named_batches_are_dealt_as_said() -> None:
    dealt = deal(files(5), NeutrinosPreprocess(validation_batches=(2,), test_batches=(5, 1)))
    assert dealt == {
        "batch-000001": "test", "batch-000002": "validation", "batch-000003": "train", "batch-000004": "train",
        "batch-000005": "test",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"preprocess\.test_batches: there is no batch 9"):
        deal(files(5), NeutrinosPreprocess(validation_batches=(2,), test_batches=(9,)))


def test_data_without_truth_cannot_be_learnt_from() -> None:
    with pytest.raises(DataError, match="no file with known directions"):
        deal(files(0, unlabelled=2), NeutrinosPreprocess())
