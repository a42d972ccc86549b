"""The exported model is what micro_sam's own exporters make, and is not published before micro_sam has used it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manyscope.errors import CheckpointError
from manyscope.scopes.cells.data.images import CellImages
from manyscope.scopes.cells.settings import CellsModel, CellsSettings
from manyscope.settings.paths import ExperimentPaths
from manyscope.stages import train as train_stage
from manyscope.training.seeds import seed_weights

pytestmark = pytest.mark.xdist_group("cells")

Settings = Callable[..., CellsSettings]


def assert_same_file(ours: Path, theirs: Path) -> None:
    one, other = (torch.load(file, weights_only=True) for file in (ours, theirs))
    assert one.keys() == other.keys() == {"model_state", "decoder_state"}
    for part in one:
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])


def test_instance_training_is_exported_as_micro_sam_exports_it(
    undisturbed: Callable[[str], Any], tmp_path: Path
) -> None:
    from micro_sam.training import export_instance_segmentation_model

    from manyscope.scopes.cells.model.export import known_to_micro_sam
    from manyscope.scopes.cells.model.networks import build

    done = undisturbed("instance")
    seed_weights(done.settings.train.seed)
    torch.save(build(done.settings.model).sam.state_dict(), tmp_path / "begun.pt")
    best = done.run.folder / "checkpoints" / "small" / "best.pt"
    with known_to_micro_sam(done.settings.model) as name:
        export_instance_segmentation_model(best, tmp_path / "theirs.pt", name, tmp_path / "begun.pt")
    assert_same_file(done.run.export / "small.pt", tmp_path / "theirs.pt")


def test_full_training_is_exported_as_micro_sam_exports_it(undisturbed: Callable[[str], Any], tmp_path: Path) -> None:
    from micro_sam.util import export_custom_sam_model

    from manyscope.scopes.cells.model.export import known_to_micro_sam

    done = undisturbed("full")
    best = done.run.folder / "checkpoints" / "small" / "best.pt"
    with known_to_micro_sam(done.settings.model) as name:
        export_custom_sam_model(best, name, tmp_path / "theirs.pt", with_segmentation_decoder=True)
    assert_same_file(done.run.export / "small.pt", tmp_path / "theirs.pt")


def test_the_other_exporter_fails_as_it_did_for_the_predecessor(
    undisturbed: Callable[[str], Any], tmp_path: Path
) -> None:
    """Which exporter fits depends on the mode; ours does not ask for it."""
    from micro_sam.training import export_instance_segmentation_model

    from manyscope.scopes.cells.model.export import known_to_micro_sam

    done = undisturbed("full")
    best = done.run.folder / "checkpoints" / "small" / "best.pt"
    with known_to_micro_sam(done.settings.model) as name, pytest.raises(KeyError, match=r"encoder\.pos_embed"):
        export_instance_segmentation_model(best, tmp_path / "theirs.pt", name, done.run.export / "small.pt")


def test_micro_sam_finds_cells_with_the_export(seeing: Any, small_data: CellImages) -> None:
    from manyscope.scopes.cells.model.export import proven

    image = small_data.image(0)
    masks = proven(seeing.run.export / "small.pt", seeing.settings.model, image)
    assert masks.shape == (128, 128)
    assert masks.dtype == np.uint32
    assert masks.max() >= 3
    smaller = proven(seeing.run.export / "small.pt", seeing.settings.model, image[:100, :120])
    assert smaller.shape == (100, 100)


def lose(content: dict[str, Any], part: str) -> dict[str, Any]:
    return {**content, part: dict(list(content[part].items())[1:])}


@pytest.mark.parametrize(
    "change",
    [
        lambda content: lose(content, "model_state"),
        lambda content: lose(content, "decoder_state"),
        lambda content: {"model_state": content["model_state"]},
        lambda content: content | {"decoder_state": {k: v[:1] for k, v in content["decoder_state"].items() if v.ndim}},
    ],
    ids=["model", "decoder", "no decoder", "shapes"],
)
def test_a_broken_export_is_refused(
    undisturbed: Callable[[str], Any], small_data: CellImages, tmp_path: Path, change: Callable[..., dict[str, Any]]
) -> None:
    from manyscope.scopes.cells.model.export import proven

    done = undisturbed("instance")
    torch.save(change(torch.load(done.run.export / "small.pt", weights_only=True)), tmp_path / "broken.pt")
    with pytest.raises(CheckpointError, match="micro_sam cannot use the exported model") as refused:
        proven(tmp_path / "broken.pt", done.settings.model, small_data.image(0))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "model",
    [
        {"decoder_features": 3},
        {"args": {"image_size": 128, "embed_dim": 32, "depth": 3, "heads": 2}},
        {"peft": {"method": "lora"}},
    ],
)
def test_the_export_of_another_model_is_refused(
    undisturbed: Callable[[str], Any], small_settings: Settings, small_data: CellImages, model: dict[str, Any]
) -> None:
    from manyscope.scopes.cells.model.export import proven

    with pytest.raises(CheckpointError, match="micro_sam cannot use the exported model"):
        proven(undisturbed("instance").run.export / "small.pt", small_settings(model=model).model, small_data.image(0))


def test_micro_sam_is_left_as_it_was() -> None:
    import micro_sam.instance_segmentation as segmentation
    import micro_sam.models.build_sam as custom
    import micro_sam.util as util

    from manyscope.scopes.cells.model.export import known_to_micro_sam

    def state() -> tuple[Any, ...]:
        return (
            segmentation.UNETR, custom._validate_model_type, dict(util.sam_model_registry),
            dict(custom.sam_model_registry),
        )  # fmt: skip

    before = state()
    with pytest.raises(ZeroDivisionError), known_to_micro_sam(CellsModel()) as name:
        assert name == "vit_b"
        assert state() != before
        raise ZeroDivisionError
    assert state() == before
    with known_to_micro_sam(CellsModel(name="vit_l_lm")) as name:
        assert name == "vit_l"
        assert state() == before


def test_nothing_is_published_when_the_proof_fails(
    small_images: Path, small_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from manyscope.scopes.cells.model import fit as module
    from manyscope.scopes.cells.model.trainer import Continued

    monkeypatch.setattr(train_stage, "stage_code_digest", lambda *_: "code")
    paths = ExperimentPaths.of(tmp_path, "small")
    paths.prepared.parent.mkdir(parents=True)
    paths.prepared.symlink_to(small_images)
    settings = small_settings(train={"epochs": 1, "patches_per_epoch": 2}).for_stage("train")
    with monkeypatch.context() as patch:
        export = module.export

        def broken(model: Any, path: Path) -> None:
            export(model, path)
            torch.save(lose(torch.load(path, weights_only=True), "decoder_state"), path)

        patch.setattr(module, "export", broken)
        with pytest.raises(CheckpointError, match="micro_sam cannot use the exported model"):
            train_stage.run(settings, paths)
    assert not any(path.exists() for path in (paths.model, paths.run, paths.train / "export"))
    steps: list[int] = []
    monkeypatch.setattr(Continued, "note", lambda self, values: steps.append(self.iteration))
    train_stage.run(settings, paths)  # mended, it is published without another step
    assert steps == []
    assert paths.model.exists()
    assert (paths.train / "export" / "small.pt").exists()
