"""What settings of cells cannot mean, said before a training; and the optimiser's own rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from manyscope.errors import DataError, ManyscopeError
from manyscope.scopes.cells.model.names import architecture, image_size
from manyscope.scopes.cells.model.tiling import Tiling
from manyscope.scopes.cells.scope import Cells
from manyscope.scopes.cells.settings import CellsModel, CellsSettings

pytestmark = pytest.mark.xdist_group("cells")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"schedule": "plateau"}}, "train.warmup_fraction: the schedule 'plateau' has no warm-up"),
        ({"train": {"mode": "full", "min_instances": 0}}, "train.min_instances: train.mode 'full' prompts cells"),
        (
            {"train": {"mode": "full", "freeze": ("image_encoder", "prompt_encoder", "mask_decoder")}},
            "train.freeze: with all parts frozen",
        ),
        (
            {"model": {"name": "vit_b", "decoder_features": 32}},
            "model.decoder_features: micro_sam could not read 'vit_b'",
        ),
        ({"infer": {"mode": "apg"}}, "infer.mode 'apg' prompts the model"),
        ({"download": {"source": "folder"}}, "download.folder.images"),
        ({"preprocess": {"low_percentile": 99.9}}, "high_percentile 99.5 is not above low_percentile 99.9"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CellsSettings.model_validate({"scope": "cells", **sections})


def problems(**sections: Any) -> str:
    return "\n".join(Cells().problems(CellsSettings.model_validate({"scope": "cells", **sections})))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"name": "tinny"}}, "model.name: there is no model 'tinny'"),
        ({"model": {"name": "vit_bogus"}}, "model.name: there is no model 'vit_bogus'"),
        ({"infer": {"splits": ("train",)}}, "infer.splits: without 'test'"),
        ({"model": {"name": "vit_b", "args": {"image_size": 384}}}, "model.patch_px, model.args: tiles of 384 px"),
        (
            {"infer": {"tile_px": 48, "halo_px": 16}, "model": {"patch_px": 128}},
            "infer.tile_px, infer.halo_px: tiles of 48",
        ),
    ],
)
def test_validate_names_what_would_fail_later(sections: dict[str, Any], message: str) -> None:
    assert message in problems(**sections)


def test_the_default_settings_have_no_problem() -> None:
    assert problems() == ""
    assert problems(model={"name": "my_package.models:sam"}) == ""  # its input size is its own


def test_names_and_sizes() -> None:
    assert [architecture(name) for name in ("tiny", "vit_b", "vit_l_lm", "a.b:c")] == [
        "tiny",
        "vit_b",
        "vit_l",
        "a.b:c",
    ]
    assert image_size(CellsModel(name="vit_b_lm")) == 1024
    assert image_size(CellsModel(name="vit_b", args={"image_size": 512})) == 512
    assert image_size(CellsModel(name="a.b:c")) is None
    assert Tiling.of(CellsModel(name="vit_b_lm", patch_px=512), 1024) == Tiling(384, 64, 64)


def test_groups_of_the_optimiser_keep_their_own_rates(
    small_settings: Callable[..., CellsSettings], train: Callable[..., Any], tmp_path: Path
) -> None:
    settings = small_settings(
        train={"optimizer": "muon", "lr": 1e-3, "optimizer_args": {"matrix_lr": 4e-3}, "schedule": "constant"}
    )
    done = train(settings, tmp_path)
    rates = {group["lr"] for group in done.checkpoint("latest")["optimizer_state"]["param_groups"]}
    assert rates == {1e-3, 4e-3}


def test_an_error_in_a_loader_process_stays_one_line(
    small_settings: Callable[..., CellsSettings], small_data: Any
) -> None:
    from manyscope.scopes.cells.model.patches import Patches, batches

    files = small_data.training_files()
    settings = small_settings(train={"min_instances": 500}).train
    with pytest.raises(DataError, match=r"no patch has 500 cells.*lower train.min_instances") as raised:
        list(batches(Patches(files, settings, 128, "train"), [[0]], workers=1))
    assert "Traceback" not in str(raised.value)


def test_a_decoder_of_transposed_convolutions_is_taken_for_what_it_is(
    small_settings: Callable[..., CellsSettings], tmp_path: Path
) -> None:
    """As micro_sam's published ones may be: which form it is shows in the names of the weights alone."""
    import torch

    from manyscope.scopes.cells.model.export import export, proven
    from manyscope.scopes.cells.model.networks import CellSegmenter, build, tiny
    from manyscope.scopes.cells.model.pretrained import decoder_weights, load_pretrained
    from manyscope.training import checkpoints

    plain = small_settings().model
    file = tmp_path / "weights.pt"
    trained = CellSegmenter(tiny(**plain.args), plain.decoder_features, transposed=True)
    export(trained, file)
    settings = small_settings(model={"weights": file}).model
    model = build(settings, decoder_weights(settings))
    load_pretrained(model, settings)
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())
    own = tmp_path / "model.ckpt"
    checkpoints.save_weights(own, model, "cells", settings.model_dump(mode="json"))
    whole = small_settings(model={"weights": file})
    again = Cells().model(whole, None, own)  # type: ignore[arg-type]
    checkpoints.load_weights(own, again, "cells", settings.model_dump(mode="json"))
    assert proven(file, settings, torch.randint(1, 255, (130, 140), dtype=torch.uint8).numpy()).shape == (128, 128)
    with pytest.raises(ManyscopeError, match=r"in the file and .* in the model"):
        load_pretrained(build(settings), settings)
