"""The scope `panoramas` through the whole chain: drawn rooms, and real panoramas with a table of questions."""

from __future__ import annotations

import json
from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from manyscope.scopes.panoramas.data.panoramas import GEOMETRY, REPORT, VIEWS, Panoramas
from manyscope.scopes.panoramas.settings import LoraSettings, PanoramasSettings
from manyscope.scopes.panoramas.views.geometry import Views
from manyscope.scopes.registry import find_scope
from manyscope.settings import load_config
from manyscope.settings.paths import ExperimentPaths
from manyscope.tables.metrics import read_metrics
from manyscope.tables.predictions import embeddings, read_predictions
from manyscope.tables.samples import read_samples
from manyscope.training.checkpoints import load, load_weights
from workspace import REPOSITORY, Workspace, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.xdist_group("panoramas")]

REAL = REPOSITORY.parent / "shared" / "data" / "panoramas"
PARTS = ("vision", "one_view", "resampler", "finetune", "blind")
TYPES = {"colour", "shape", "count", "exists", "opposite"}


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("panoramas") / "work", experiments=("panoramas",))
    workspace.snakemake("--profile", "workflow_profiles/local")
    return workspace


@pytest.fixture(scope="module")
def paths(rooms: Workspace) -> ExperimentPaths:
    return ExperimentPaths.of(rooms.results, "panoramas")


def succeeds(workspace: Workspace, *arguments: str) -> str:
    """What the command says."""
    done = workspace.here(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def beside(paths: ExperimentPaths, results: Path, *stages: str) -> ExperimentPaths:
    """The same experiment in a folder of its own, in which what some stages made is there already."""
    own = ExperimentPaths.of(results, paths.experiment)
    own.root.mkdir(parents=True)
    for name in stages:
        (own.root / name).symlink_to(paths.root / name)
    return own


def test_every_question_is_answered_with_and_without_the_picture(paths: ExperimentPaths) -> None:
    samples, predictions = read_samples(paths.samples), read_predictions(paths.predictions)
    assert predictions["sample_id"].to_list() == samples["sample_id"].to_list()
    assert predictions["object_id"].to_list() == samples["sample_id"].to_list()
    assert set(samples["type"]) == TYPES
    for column in ("answer", "blind_answer"):
        assert predictions[column].n_unique() > 1
    joined = samples.select("sample_id", "group", "question").join(predictions, on="sample_id")
    # The blind model can only say the same to the same question.
    assert joined.group_by("question").agg(pl.col("blind_answer").n_unique())["blind_answer"].max() == 1
    looks, means = np.split(embeddings(joined), 2, axis=1)
    for half, column in ((looks, "group"), (means, "question")):
        assert np.linalg.norm(half, axis=1) == pytest.approx(1, abs=1e-5)
        different = np.unique(half, axis=0)
        assert len(different) == joined[column].n_unique(), column


def test_rooms_are_drawn_for_their_split_and_stay_in_it(paths: ExperimentPaths) -> None:
    samples = read_samples(paths.samples)
    counts = samples.group_by("split").agg(pl.col("group").n_unique()).sort("split")
    assert counts.rows() == [("test", 12), ("train", 24), ("validation", 6)]
    assert samples["group"].str.starts_with("room-").all()
    assert (samples["group"].str.split("-").list.get(1) == samples["split"]).all()


def test_it_is_judged_beside_the_commonest_answer_and_the_blind_model(paths: ExperimentPaths) -> None:
    document, rows = read_metrics(paths.metrics)
    assert document["headline"] == "exact_match"
    found = {(row.name, row.group): row for row in rows}
    assert {row.baseline for row in rows} == {"majority", "blind"}
    assert {group for name, group in found if name == "exact_match"} == {"all", "seam", *TYPES}
    assert {name for name, _ in found} == {"exact_match", "rouge_l", "cider_d"}
    samples = read_samples(paths.samples).filter(pl.col("split") == "test")
    judged = samples.select("sample_id", "type", truth="answer").join(
        read_predictions(paths.predictions).select("sample_id", "answer"), on="sample_id"
    )
    for group in ("all", *TYPES):
        own = judged.filter((pl.col("type") == group) | (group == "all"))
        row = found["exact_match", group]
        assert (row.n, row.value) == (len(own), pytest.approx((own["answer"] == own["truth"]).mean()))
    answers = pl.read_csv(paths.evaluate / "answers.csv")
    assert sorted(answers["sample_id"]) == sorted(samples["sample_id"])
    assert {"accuracy", "answers", "training"} <= {file.stem for file in paths.figures.glob("*.png")}


def test_the_number_of_shards_changes_no_digit(
    rooms: Workspace, paths: ExperimentPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the profile runs the stage: the order of a sum, and so its last digit, depends on the number of threads.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for shards in (1, 3):
        own = beside(paths, tmp_path / str(shards), "prepared", "train")
        common = ("--experiment", "panoramas", "--results", str(own.root.parent), "--shards", str(shards))
        for shard in range(shards):
            assert rooms.manyscope("infer", *common, "--shard", str(shard)).returncode == 0
        assert rooms.manyscope("gather", *common).returncode == 0
        assert own.predictions.read_bytes() == paths.predictions.read_bytes(), shards


def test_a_question_is_found_by_its_words(rooms: Workspace, paths: ExperimentPaths) -> None:
    samples = read_samples(paths.samples)
    question, count = samples["question"].value_counts().sort("count", "question").row(-1)
    search = ("search", "--experiment", "panoramas", "--json", "-k", str(count + 1), "--text", question)
    found = pl.DataFrame(json.loads(succeeds(rooms, *search)))
    asked = found.select("object_id", "distance").join(
        samples, left_on="object_id", right_on="sample_id", maintain_order="left"
    )
    assert (asked["question"] == question).to_list() == [True] * count + [False]
    assert asked["distance"][count] > asked["distance"][count - 1] + 1e-4


def test_a_picture_is_found_by_its_file(rooms: Workspace, paths: ExperimentPaths) -> None:
    samples, picture = read_samples(paths.samples), "room-test-00003"
    count = samples.filter(pl.col("group") == picture).height
    file = paths.raw / "pictures" / f"{picture}.png"
    search = ("search", "--experiment", "panoramas", "--json", "-k", str(count + 1), "--image", str(file))
    found = [each["object_id"] for each in json.loads(succeeds(rooms, *search))]
    own = [name.startswith(f"{picture}-") for name in found]
    assert own == [True] * count + [False]


def test_views_are_drawn_on_any_picture(rooms: Workspace, paths: ExperimentPaths, tmp_path: Path) -> None:
    file, shown = paths.raw / "pictures/room-test-00003.png", []
    for number, strategy in enumerate(("e2p", "anyres_e2p")):
        output = tmp_path / f"{number}.png"
        change = ("--set", f"preprocess.views.strategy={strategy}")
        succeeds(rooms, "show", str(file), "--experiment", "panoramas", "--output", str(output), *change)
        with Image.open(output) as image:
            assert image.format == "PNG"
            shown.append(np.asarray(image.convert("RGB")))
    assert all(picture.std() > 10 for picture in shown)
    assert shown[0].shape != shown[1].shape or (shown[0] != shown[1]).any()


def test_curves_of_every_part_are_in_one_history(paths: ExperimentPaths) -> None:
    history = pl.read_parquet(paths.history)
    parts = history["name"].str.split("/").list.get(0)
    assert history.with_columns(part=parts)["part"].unique(maintain_order=True).to_list() == list(PARTS)
    names = set(history["name"])
    assert {f"{part}/{split}/loss" for part in PARTS for split in ("train", "validation")} <= names
    assert {f"vision/train/{term}" for term in ("invariance", "variance", "covariance", "overlap")} <= names
    assert {f"{part}/validation/words_right" for part in PARTS[1:]} <= names
    steps = [history.filter(parts == part)["step"].unique().sort() for part in PARTS]
    assert all(one.max() < other.min() for one, other in pairwise(steps))
    state = json.loads((paths.export / "stage_state.json").read_text())
    assert [sum(state["parts"][name]["steps"] for name in PARTS[: n + 1]) for n in range(5)] == [s.max() for s in steps]


def test_the_run_says_where_it_came_from(paths: ExperimentPaths) -> None:
    record = json.loads(paths.run.read_text())
    assert (record["experiment"], record["start_from"], record["pretrained"]) == ("panoramas", None, {})
    assert {"torch", "transformers", "peft"} <= set(record["packages"])
    assert not paths.resume.exists()


# ------------------------------------------------------------------------------------------------------------ export
@pytest.fixture(scope="module")
def settings(rooms: Workspace) -> PanoramasSettings:
    with chdir(rooms.folder):
        config = load_config(config_file=Path("config/config.yaml"), experiments=["panoramas"])
    return config.experiments["panoramas"]


def test_each_stage_leaves_its_weights_and_what_it_does_not_train_stays(paths: ExperimentPaths) -> None:
    state = json.loads((paths.export / "stage_state.json").read_text())
    assert state["completed"] == ["vision", "resampler", "finetune"]
    assert list(state["parts"]) == list(PARTS)
    vision, resampler, finetune = (
        load(paths.export / "stages" / f"{stage}.ckpt")["state_dict"] for stage in state["completed"]
    )
    last = load(paths.model)["state_dict"]

    def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
        return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}

    # The first views one by one, in which everything learns, come between the stages vision and resampler.
    assert moved(vision, resampler) == {"vision", "resampler", "projector", "language"}
    assert moved(resampler, finetune) == {"projector", "language"}
    assert moved(finetune, last) == {"blind"}


def test_adapters_are_loaded_by_peft_onto_the_language_model(
    settings: PanoramasSettings, paths: ExperimentPaths
) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer

    from manyscope.scopes.panoramas.model.language import Language

    data = Panoramas(paths.prepared)
    network = find_scope("panoramas").model(settings, data).eval()
    load_weights(paths.model, network, settings.scope, settings.model.model_dump(mode="json"))
    own = network.language.model
    plain = Language(settings.model.language, LoraSettings(rank=0), network.chat.tokenizer, settings.model.weights)
    weights = {name.replace(".base_layer", ""): value for name, value in own.state_dict().items()}
    plain.model.load_state_dict({name: value for name, value in weights.items() if "lora_" not in name})
    ids = torch.arange(12)[None] % len(network.chat.tokenizer)
    with torch.no_grad():
        expected, before = own(ids).logits, plain.model.eval()(ids).logits
        adapted = PeftModel.from_pretrained(plain.model, paths.export / "adapters").eval()
        torch.testing.assert_close(adapted(ids).logits, expected)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - before).abs().max() > 1e-3
    tokenizer = AutoTokenizer.from_pretrained(paths.export / "adapters")
    assert (
        tokenizer("is there a red ball ?")["input_ids"] == network.chat.tokenizer("is there a red ball ?")["input_ids"]
    )
    assert tokenizer.chat_template == network.chat.tokenizer.chat_template


# --------------------------------------------------------------------------------------------------- real panoramas
COUNTS = {
    "resize": 1, "sliding_window": 8, "e2p": 8, "cubemap": 4, "anyres": 13, "anyres_max": 13, "anyres_e2p": 9,
}  # fmt: skip
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real panoramas are not beside the repository")


@pytest.fixture(scope="module")
def real(rooms: Workspace) -> ExperimentPaths:
    """Pictures of the real world in an experiment `real`, downloaded."""
    yaml = YAML(typ="safe")
    values = yaml.load(rooms.folder / "config/experiments/panoramas.yaml")
    values["download"] = {"source": "csv", "csv": {"files": [{"path": str(REAL / "qa.csv")}]}}
    values["preprocess"] |= {"split_seed": 1, "validation_fraction": 0.15, "test_fraction": 0.4}
    values["preprocess"]["views"] |= {"fov_deg": 90, "overlap": 0.5, "pitch_deg": 0}
    values["model"]["language"]["most_tokens"] = 128
    values["train"]["resampler"] = {"trains": ["projector", "language"]}
    values["train"]["finetune"] = {"trains": ["projector", "language", "adapters"]}
    values["train"] |= {"tracker": "none", "batch_size": 4}
    values["infer"]["most_words"] = 24
    with (rooms.folder / "config/experiments/real.yaml").open("w") as file:
        yaml.dump(values, file)
    (rooms.folder / "config/config.yaml").write_text("experiments: [panoramas, real]\nshards: 2\n")
    succeeds(rooms, "validate", "real")
    succeeds(rooms, "download", "--experiment", "real")
    return ExperimentPaths.of(rooms.results, "real")


@needs_real
@pytest.mark.parametrize("strategy", COUNTS)
def test_real_panoramas_are_cut_by_every_strategy(
    rooms: Workspace, real: ExperimentPaths, tmp_path: Path, strategy: str
) -> None:
    own = beside(real, tmp_path, "raw")
    change = ("--set", f"preprocess.views.strategy={strategy}")
    succeeds(rooms, "preprocess", "--experiment", "real", "--results", str(tmp_path), *change)
    pixels = np.load(own.prepared / VIEWS)
    assert pixels.shape == (14, COUNTS[strategy], 3, 16, 16)
    assert len(Views.load(own.prepared / GEOMETRY)) == COUNTS[strategy]
    assert (pixels.std((3, 4)) > 0).any(2).all()
    # The middle of a view shows what is in the picture where the view looks.
    pictures, there = np.load(own.prepared / "previews.npy"), []
    for view in Views.load(own.prepared / GEOMETRY).views:
        ahead = np.roll(pictures, -round(view.yaw_deg * 128 / 360), 2)
        row, down, across = ((90 - view.pitch_deg) * 64 / 180, view.height_deg * 4 / 180, view.width_deg * 8 / 360)
        rows, columns = (
            slice(round(at - max(half, 1)), round(at + max(half, 1))) for at, half in ((row, down), (64, across))
        )
        there.append(ahead[:, rows, columns].mean((1, 2)))
    seen = pixels[..., 7:9, 7:9].mean((3, 4))
    assert np.corrcoef(np.stack(there, 1).ravel(), seen.ravel())[0, 1] > 0.98
    report = json.loads((own.prepared / REPORT).read_text())
    assert (report["pictures"], report["skipped"], report["rows"]) == (14, 0, report["kept"] + report["duplicate"])


@needs_real
def test_real_panoramas_are_answered_and_judged(rooms: Workspace, real: ExperimentPaths) -> None:
    for stage in ("preprocess", "train", "infer", "gather", "evaluate"):
        succeeds(rooms, stage, "--experiment", "real")
    samples, predictions = read_samples(real.samples), read_predictions(real.predictions)
    assert predictions["sample_id"].to_list() == samples["sample_id"].to_list()
    assert len(samples) == pl.read_csv(REAL / "qa.csv").select("url", "query").n_unique()
    assert samples.group_by("group").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(samples["split"]) == {"train", "validation", "test"}
    state = json.loads((real.export / "stage_state.json").read_text())
    assert list(state["parts"]) == [part for part in PARTS if part != "one_view"]
    _, rows = read_metrics(real.metrics)
    assert {row.name for row in rows} == {"exact_match", "bleu4", "rouge_l", "cider_d"}
