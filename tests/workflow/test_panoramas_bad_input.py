"""Bad tables, pictures and settings of panoramas: each is named in a line before any training, and nothing
half-written is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from ruamel.yaml import YAML

from manyscope.settings.paths import ExperimentPaths
from workspace import Workspace, make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("panoramas")]

SETTINGS, DATA, CHECKPOINT = 2, 3, 4  # exit codes
SPLITS = ("train", "validation", "test")
ROWS = ("url,query,annotation", "a.png,what is it ?,noise", "b.png,what is it ?,noise", "b.png,is it red ?,no")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("panoramas-bad") / "work", experiments=("mine",))


@pytest.fixture
def own(desk: Workspace, tmp_path: Path) -> Path:
    """Three tables of two pictures, but of five for the test split, and an experiment `mine` that reads them; results
    are of this test alone."""
    folder = tmp_path / "own"
    rng = np.random.default_rng(0)
    tables = []
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        names = "abcde" if split == "test" else "ab"
        for name in names:
            save(rng.integers(0, 256, (32, 64, 3), np.uint8), folder / split / f"{name}.png")
        more = [f"{name}.png,what is it ?,noise" for name in names[2:]]
        (folder / split / "table.csv").write_text("\n".join((*ROWS, *more)) + "\n")
        tables.append({"path": str(folder / split / "table.csv"), "split": split})
    yaml = YAML(typ="safe")
    values = yaml.load(desk.folder / "config/experiments/panoramas.yaml")
    values["download"] = {"source": "csv", "csv": {"files": tables}}
    values["model"]["resampler"] = {"name": "mlp", "width": 8}
    values["train"]["resampler"] = {"trains": ["projector", "language"]}
    values["train"]["finetune"] = {"trains": ["projector", "adapters"]}
    values["train"]["tracker"] = "none"
    with (desk.folder / "config/experiments/mine.yaml").open("w") as file:
        yaml.dump(values, file)
    text = f"experiments: [mine]\nresults: {tmp_path / 'results'}\n"
    (desk.folder / "config/config.yaml").write_text(text)
    return folder


def save(values: np.ndarray, file: Path) -> None:
    Image.fromarray(values).save(file)


def paths(own: Path) -> ExperimentPaths:
    return ExperimentPaths.of(own.parent / "results", "mine")


def stage(desk: Workspace, name: str, *changes: str) -> Result:
    return desk.here(name, "--experiment", "mine", *(word for change in changes for word in ("--set", change)))


def left(own: Path) -> list[str]:
    """Every file that the stages left, but for logs and locks."""
    root = own.parent / "results"
    files = (file.relative_to(root) for file in root.rglob("*") if not file.is_dir() or file.is_symlink())
    return sorted(str(file) for file in files if not {"logs", ".locks"} & set(file.parts))


def is_said(done: Result, code: int, words: tuple[str, ...]) -> None:
    """One line of an error, with all of the words."""
    assert done.exit_code == code, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words), line
    assert done.stderr.splitlines()[-1] == line
    assert "Traceback" not in done.output


# ------------------------------------------------------------------------------------------------- tables, pictures
def not_2_to_1(own: Path) -> None:
    save(np.zeros((32, 60, 3), np.uint8), own / "train/b.png")


def corrupt(own: Path) -> None:
    (own / "test/a.png").write_bytes(b"\x89PNG no more")


def no_picture(own: Path) -> None:
    (own / "train/a.png").unlink()


def no_column(own: Path) -> None:
    change(own, "train", "annotation", "anotation")


def no_answer(own: Path) -> None:
    change(own, "validation", "is it red ?,no", "is it red ?,")


def no_question(own: Path) -> None:
    change(own, "train", "a.png,what is it ?,", "a.png,,")


def comma(own: Path) -> None:
    change(own, "train", "is it red ?,no", "is it red ?,no, it is not")


def shared(own: Path) -> None:
    change(own, "test", "a.png", "../train/a.png")


def other_address(own: Path) -> None:
    change(own, "test", "a.png", "ftp://example.org/a.png")


def no_table(own: Path) -> None:
    (own / "test/table.csv").unlink()


def change(own: Path, split: str, old: str, new: str) -> None:
    file = own / split / "table.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


# What is wrong, and what the line about it says.
BAD: dict[Callable[[Path], None], tuple[str, ...]] = {
    not_2_to_1: (
        "train/table.csv:3: b.png: the picture has 60 x 32 px, which is 1.88:1",
        "2:1 within 2%",
        "cut or ext",
    ),
    corrupt: ("test/table.csv:2: a.png: the picture cannot be read", "get it again, or leave it out"),
    no_picture: ("train/table.csv:2: there is no file 'a.png'", "relative to the table", "download.csv.missing"),
    no_column: ("train/table.csv:1: column 'annotation' is missing", "url,instruction,response", "'anotation'"),
    no_answer: ("validation/table.csv:4: the row has no annotation", "mend or remove the row", "preprocess.bad_rows"),
    no_question: ("train/table.csv:2: the row has no query", "mend or remove the row"),
    comma: ("train/table.csv:4: the row has 4 fields, the header 3", "between quotes"),
    shared: ("a.png' is in train (", "train/table.csv:2) and test", "take it out of"),
    other_address: ("test/table.csv:2: the address 'ftp://example.org/a.png'", "http://, https://, or a path"),
    no_table: ("test/table.csv: the table cannot be read", "mend download.csv.files"),
}


@pytest.mark.parametrize("change", BAD, ids=lambda change: change.__name__)
def test_a_table_or_picture_that_breaks_a_rule_is_named(
    desk: Workspace, own: Path, change: Callable[[Path], None]
) -> None:
    change(own)
    is_said(desk.here("validate", "mine"), SETTINGS, ("error: mine: download.csv.files: ", *BAD[change]))
    assert left(own) == []
    done = stage(desk, "download")
    if done.exit_code:
        is_said(done, DATA, BAD[change])
        assert left(own) == []
        return
    before = left(own)
    is_said(stage(desk, "preprocess"), DATA, BAD[change][:1])
    assert left(own) == before
    assert not paths(own).prepared.exists()


def test_validate_names_all_that_is_wrong_at_once(desk: Workspace, own: Path) -> None:
    some = (not_2_to_1, corrupt, no_answer)
    for bad in some:
        bad(own)
    lines = [line for line in desk.here("validate", "mine").stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == len(some), lines
    for bad in some:
        assert [line for line in lines if all(word in line for word in BAD[bad])], (bad, lines)


def cut_off(own: Path) -> None:
    file = own / "train/b.png"
    file.write_bytes(file.read_bytes()[:-2000])


def same_bytes(own: Path) -> None:
    (own / "test/a.png").write_bytes((own / "train/b.png").read_bytes())


LATER: dict[Callable[[Path], None], tuple[str, ...]] = {
    cut_off: (
        "train/table.csv:3: b.png: the picture cannot be read (",
        "get it again",
        "preprocess.bad_rows to 'skip'",
    ),
    same_bytes: ("the picture 'b.png' is in train (", ") and test (", "take it out of the other tables"),
}


@pytest.mark.parametrize("change", LATER, ids=lambda change: change.__name__)
def test_what_only_decoding_shows_stops_the_preparation(
    desk: Workspace, own: Path, change: Callable[[Path], None]
) -> None:
    change(own)
    assert desk.here("validate", "mine").exit_code == 0
    assert stage(desk, "download").exit_code == 0
    before = left(own)
    is_said(stage(desk, "preprocess"), DATA, LATER[change])
    assert left(own) == before
    assert not paths(own).prepared.exists()


class _Gone(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def gone() -> Iterator[str]:
    """The address of a server on this machine that has nothing."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Gone)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_dead_address_stops_the_download_or_is_skipped(desk: Workspace, own: Path, gone: str) -> None:
    change(own, "train", "a.png", f"{gone}/a.png")
    assert desk.here("validate", "mine").exit_code == 0
    words = ("train/table.csv:2: ", f"{gone}/a.png", "404", "remove its rows, or set download.csv.missing to 'skip'")
    is_said(stage(desk, "download"), DATA, words)
    assert not paths(own).manifest.exists()
    done = stage(desk, "download", "download.csv.missing=skip", "download.csv.missing_fraction=0.1")
    is_said(done, DATA, ("1 of 9 pictures cannot be had", "at most 10% of them", "check the network"))
    assert not paths(own).manifest.exists()
    done = stage(desk, "download", "download.csv.missing=skip")
    assert done.exit_code == 0
    assert f"{gone}/a.png" in done.stderr
    assert stage(desk, "preprocess", "download.csv.missing=skip").exit_code == 0


# ----------------------------------------------------------------------------------------------------------- settings
UNMARKED = "{%- for m in messages -%}{{- m['role'] + ': ' + m['content'] -}}{%- endfor -%}"
BAD_SETTINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "model": ("model.name=panoram", ("model.name: ", "'panoram' is unknown", "did you mean 'panorama'?")),
    "resampler": (
        "model.resampler.name=percever",
        ("model.resampler.name: ", "'percever' is unknown", "qformer", "did you mean 'perceiver'?"),
    ),
    "strategy": (
        "preprocess.views.strategy=cubmap",
        ("preprocess.views.strategy: ", "'cubmap' is unknown", "anyres_e2p", "did you mean 'cubemap'?"),
    ),
    "overlap": ("model.overlap.loss=vicregg", ("model.overlap.loss: ", "infonce", "did you mean 'vicreg'?")),
    "source": ("download.source=rom", ("download.source: ", "allowed: csv, rooms", "did you mean 'rooms'?")),
    "vision": (
        "model.vision.type=siglp",
        ("model.vision.type: found 'siglp'", "siglip2, clip, dinov2", "did you mean 'siglip'?"),
    ),
    "cache": (
        "model.vision.pretrained=google/siglip-base-patch16-224",
        ("model.vision.pretrained: ", "'google/siglip-base-patch16-224' is not there", "manyscope download --exp"),
    ),
    "rank": ("model.lora.rank=0", ("train.finetune.trains: ", "no adapters with model.lora.rank: 0", "give a rank")),
    "template": (
        "model.language.chat_template=chatlm",
        ("model.language.chat_template: 'chatlm' is unknown", "plain, chatml, llama3, gemma, or a .jinja file"),
    ),
    "marks": (
        "model.language.chat_template=config/unmarked.jinja",
        ("model.language.chat_template: config/unmarked.jinja", "does not mark", "{% generation %}"),
    ),
    "prompt": ("model.language.prompt=hello", ("model.language.prompt: 'hello'", "has no {query}")),
    "splits": ("infer.splits=[train]", ("infer.splits: ", "'test'", "add it")),
    "views": ("preprocess.views.strategy=cubemap", ("preprocess.views.fov_deg: 60 is no face of a cube", "90")),
    "order": ("train.stages=[finetune, resampler]", ("train", "not in the order vision, resampler, finetune")),
    "finetune": ("train.stages=[finetune]", ("train.stages: finetune builds on the stage resampler", "start_from")),
    "nothing": ("train.resampler.trains=[]", ("train.resampler.trains: nothing learns", "name some of vision")),
    "vision learns": ("train.vision.trains=[adapters]", ("train.vision.trains: ", "leave out the others")),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_cannot_be_used_are_said_before_anything_runs(desk: Workspace, own: Path, case: str) -> None:
    setting, words = BAD_SETTINGS[case]
    (desk.folder / "config/unmarked.jinja").write_text(UNMARKED)
    is_said(desk.here("validate", "mine", "--set", f"mine.{setting}"), SETTINGS, words)
    assert left(own) == []


# -------------------------------------------------------------------------- settings that the prepared data contradict
CUBEMAP, FOV = "preprocess.views.strategy=cubemap", "preprocess.views.fov_deg=90"
REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "cubemap": (
        (CUBEMAP, FOV), 1,
        ("model.overlap: no view sees", "4 views of 4 x 4 tokens", "preprocess.views.overlap"),
    ),
    "cubemap, later": (
        (CUBEMAP, FOV, "train.stages=[resampler]", "train.resampler.overlap_weight=1"), 1,
        ("model.overlap: no view sees", "set model.overlap.loss to none"),
    ),
    "grid": (
        ("model.resampler.name=perceiver",), SETTINGS,
        ("model.projector.parts: 1 parts of no grid",),
    ),
    "parts": (("model.projector.parts=3",), SETTINGS, ("model.projector.parts: 3 parts of a grid of 4 x 4 tokens",)),
    "targets": (("model.lora.targets=[no_proj]",), SETTINGS, ("model.lora.targets: ", "no_proj")),
    "argument": (
        ("model.resampler.args={depht: 2}",), SETTINGS,
        ("model.resampler.args: resampler 'mlp' refuses them", "'depht'"),
    ),
    "types": (
        ("train.finetune.types=[colour]",), DATA,
        ("no panorama of the split 'train' has a turn of the types colour", "allowed: question", "finetune.types"),
    ),
    "long": (
        ("model.language.most_tokens=14",), DATA,
        ("question 'what is it ?': ", "14 in all (model.language.most_tokens)", "raise most_tokens", "to cut"),
    ),
    "marks": (
        ("model.language.chat_template=config/unmarked.jinja",), CHECKPOINT,
        ("model.language.chat_template", "does not mark what the model generates", "{% generation %}"),
    ),
    "cache": (
        ("model.language.pretrained=Qwen/Qwen3-0.6B",), CHECKPOINT,
        ("model 'Qwen/Qwen3-0.6B' is not there", "download.hub.names", "login node"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_the_data_is_said_before_the_training(desk: Workspace, own: Path, case: str) -> None:
    changes, code, words = REFUSED[case]
    (desk.folder / "config/unmarked.jinja").write_text(UNMARKED)
    for name in ("download", "preprocess"):
        done = stage(desk, name, *(change for change in changes if change.startswith("preprocess.")))
        assert done.exit_code == 0, done.output
    before = left(own)
    is_said(stage(desk, "train", *changes), code, words)
    assert left(own) == before
