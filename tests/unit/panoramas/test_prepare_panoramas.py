"""Preparation: what is kept, in which form, and what is refused."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from manyscope.errors import DataError
from manyscope.scopes.panoramas.data import prepare as module
from manyscope.scopes.panoramas.data.panoramas import Panoramas
from manyscope.scopes.panoramas.data.pictures import read_panorama
from manyscope.scopes.panoramas.data.prepare import prepare
from manyscope.scopes.panoramas.data.sources import Row, Table, find_source
from manyscope.scopes.panoramas.settings import PanoramasDownload, PanoramasPreprocess, RoomsSettings, ViewSettings
from manyscope.scopes.panoramas.views.render import Renderer
from manyscope.scopes.panoramas.views.strategies import find_views
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import read_table, write_table

VIEWS = ViewSettings(size_px=8, fov_deg=60, overlap=0.25)
SKIP = "or set preprocess.bad_rows to 'skip'"


LEAST = dict(module.LEAST)


@pytest.fixture(autouse=True)
def any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tables have no more pictures than they need to show something."""
    monkeypatch.setattr(module, "LEAST", dict.fromkeys(LEAST, 0))


def settings(**values: Any) -> PanoramasPreprocess:
    return PanoramasPreprocess(views=VIEWS, **values)


def pixels(seed: int, height: int = 16, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def put(raw: Path, name: str, picture: np.ndarray, mode: str = "RGB") -> str:
    path = f"pictures/{name}"
    (raw / "pictures").mkdir(exist_ok=True)
    Image.fromarray(picture).convert(mode).save(raw / path)
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Six panoramas, p0.png to p5.png, whose files are named by numbers."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for seed in range(6):
        put(folder, f"{seed}.png", pixels(seed))
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    (tmp_path / "prepared").mkdir()
    return tmp_path / "prepared"


def row(line: int, number: int, query: str = "what ?", answer: str = "sky", **rest: str) -> Row:
    return Row(line, f"photos/p{number}.jpg", query, answer, **{"picture": f"pictures/{number}.png", **rest})


def table(split: str | None, *rows: Row, file: str = "qa.csv") -> Table:
    return Table(file, split, rows)


def opened(samples: pl.DataFrame, prepared: Path) -> Panoramas:
    write_table(prepared / "samples.parquet", samples)
    return Panoramas(prepared)


def report(prepared: Path) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    rows = read_table(prepared / "report.parquet").select("file", "line", "state", "reason").rows()
    return json.loads((prepared / "report.json").read_text()), rows


THREE = (
    table("train", row(2, 0), row(3, 1, "how big ?", "Big, and tall."), file="train.csv"),
    table("validation", row(2, 2), file="validation.csv"),
    table("test", row(2, 3), row(3, 3, answer="clouds"), row(4, 3), row(5, 3, "where ?", "up", type="place",
          direction="back"), file="test.csv"),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------- what is kept
def test_files(raw: Path, prepared: Path) -> None:
    extra = table("unlabelled", row(2, 4, "and here ?", ""), file="more.csv")
    data = opened(prepare([*THREE, extra], {}, settings(), raw, prepared), prepared)
    samples = data.samples
    assert samples["group"].to_list() == ["p0", "p1", "p2", "p3", "p3", "p4"]
    assert samples["split"].to_list() == ["train", "train", "validation", "test", "test", "unlabelled"]
    assert samples["picture"].to_list() == [0, 1, 2, 3, 3, 4]
    assert samples["question"].to_list() == ["what ?", "how big ?", "what ?", "what ?", "where ?", "and here ?"]
    assert samples["answer"].to_list() == ["sky", "Big, and tall.", "sky", "sky", "up", ""]
    assert samples["type"].to_list() == ["question"] * 4 + ["place", "question"]
    assert samples["direction"].to_list() == [""] * 4 + ["back", ""]
    assert samples["references"].to_list() == [1, 1, 1, 2, 1, 0]
    ids = samples["sample_id"].to_list()
    assert ids[3] == f"p3-{hashlib.blake2b(b'what ?', digest_size=4).hexdigest()}"
    assert data.references[ids[3]] == ["sky", "clouds"]
    assert ids[5] not in data.references
    assert [turn.answer for turn in data.turns[3]] == ["sky", "clouds", "up"]
    assert data.pictures.rows() == [
        (f"p{i}", f"pictures/{i}.png", f"photos/p{i}.jpg", split, 32, 16)
        for i, split in enumerate(["train", "train", "validation", "test", "unlabelled"])
    ]
    views = find_views(VIEWS)
    renderer = Renderer(views, VIEWS)
    for number in range(5):
        np.testing.assert_array_equal(data.pixels[number], renderer(pixels(number)))
        expanded = pixels(number).repeat(4, 0).repeat(4, 1)  # 16 x 32 averaged to 64 x 128 is each pixel 4 x 4 times
        np.testing.assert_array_equal(data.previews[number], expanded)
    assert data.words == sorted({"what", "?", "sky", "how", "big", "Big", ",", "and", "tall", "."})
    assert data.rooms is None
    said, rows = report(prepared)
    assert said == {
        "rows": 8, "kept": 7, "duplicate": 1, "skipped": 0, "reasons": {}, "pictures": 5, "pictures_resized": 0,
        "questions": 6, "references_per_question": {"least": 1, "mean": 1.2, "most": 2},
        "splits": {
            "train": {"pictures": 2, "questions": 2}, "validation": {"pictures": 1, "questions": 1},
            "test": {"pictures": 1, "questions": 2}, "unlabelled": {"pictures": 1, "questions": 1},
        },
    }  # fmt: skip
    assert rows[5] == ("test.csv", 4, "duplicate", "the same as test.csv:2")


def test_large_panoramas_are_averaged_for_previews(raw: Path, prepared: Path) -> None:
    big = pixels(9, 128, 256)
    put(raw, "0.png", big)
    data = opened(prepare(THREE, {}, settings(), raw, prepared), prepared)
    mean = big.reshape(64, 2, 128, 2, 3).mean((1, 3))
    assert np.abs(data.previews[0] - mean).max() <= 1  # rounded once for each axis


def test_rooms(tmp_path: Path, prepared: Path) -> None:
    own = PanoramasDownload(rooms=RoomsSettings(train=3, validation=1, test=1, height_px=32))
    source = find_source("rooms")
    raw = tmp_path / "drawn"
    raw.mkdir()
    manifest = describe(raw, source.download(own, raw))
    rooms = source.rooms(own, raw)
    data = opened(prepare(source.tables(own, raw, manifest), rooms, settings(), raw, prepared), prepared)
    assert data.rooms == list(rooms.values())
    assert data.pictures["picture"].to_list()[0] == "room-train-00000"
    assert {"behind", "back", "left", "sixteen", "nearer"} <= set(data.words)
    assert report(prepared)[0]["kept"] == len(data.samples)


def test_split_by_hash_never_divides_a_picture(raw: Path, prepared: Path) -> None:
    rows = [row(line, line % 6, f"question {line} ?") for line in range(2, 40)]
    samples = prepare([table(None, *rows)], {}, settings(test_fraction=0.4), raw, prepared)
    assert (samples.group_by("group").agg(pl.col("split").n_unique())["split"] == 1).all()
    (other := prepared.with_name("other")).mkdir()
    fewer = prepare([table(None, *rows[::2])], {}, settings(test_fraction=0.4), raw, other)
    assert set(fewer.select("group", "split").rows()) < set(samples.select("group", "split").rows())
    # A picture that one table gives a split has it in the others, too.
    split = samples.filter(pl.col("group") == "p0")["split"][0]
    given = "test" if split != "test" else "train"
    (third := prepared.with_name("third")).mkdir()
    both = prepare([table(None, *rows), table(given, row(2, 0, "new ?"))], {}, settings(), raw, third)
    assert set(both.filter(pl.col("group") == "p0")["split"]) == {given}


def test_pictures_of_the_same_bytes_are_one(raw: Path, prepared: Path) -> None:
    put(raw, "9.png", pixels(0))
    doubled = table("train", row(2, 0), row(3, 9), row(4, 9, "else ?"), row(5, 1))
    samples = prepare([doubled, *THREE[1:]], {}, settings(), raw, prepared)
    assert samples.filter(pl.col("split") == "train")["group"].to_list() == ["p0", "p0", "p1"]


def test_names(raw: Path, prepared: Path) -> None:
    rows = [
        Row(2, "https://host/a%20b/pano one.jpg?size=l&x=1.2", "q", "a", picture="pictures/0.png"),
        Row(3, "other/pano_one.png", "q", "a", picture="pictures/1.png"),
        Row(4, "../Ünïcode/…/.png", "q", "a", picture="pictures/4.png"),
        Row(5, "x/" + "y" * 200 + ".jpg", "q", "a", picture="pictures/5.png"),
    ]
    prepare([table("train", *rows), *THREE[1:]], {}, settings(), raw, prepared)
    names = read_table(prepared / "pictures.parquet")["picture"].to_list()[:4]
    assert names[0] == "pano_one"
    assert names[1].startswith("pano_one-")
    assert len(names[1]) == len("pano_one-") + 16
    assert names[2:] == ["png", "y" * 80]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_modes(mode: str, raw: Path) -> None:
    name = "m.tif" if mode == "CMYK" else "m.png"
    put(raw, name, pixels(3), mode)
    panorama = read_panorama(raw / "pictures" / name, 0.02)
    assert panorama.shape == (16, 32, 3)
    assert panorama.dtype == np.uint8


def test_nearly_two_to_one_is_resampled(raw: Path, prepared: Path) -> None:
    put(raw, "0.png", pixels(0, 100, 202))
    assert read_panorama(raw / "pictures/0.png", 0.02).shape == (100, 200, 3)
    prepare(THREE, {}, settings(), raw, prepared)
    assert report(prepared)[0]["pictures_resized"] == 1


# ----------------------------------------------------------------------------------------------------- what is refused
def spoil(raw: Path) -> list[Table]:
    """Tables with a bad row of every kind; three pictures that are right remain."""
    put(raw, "square.png", pixels(7, 16, 16))
    Image.fromarray(np.zeros((8, 16), np.uint16)).save(raw / "pictures/deep.png")
    (raw / "pictures/text.png").write_text("not a picture")
    whole = (raw / "pictures/5.png").read_bytes()
    (raw / "pictures/cut.png").write_bytes(whole[: len(whole) // 2])
    bad = [
        row(3, 0, ""), row(4, 0, "a ?", ""), Row(5, "", "", ""), row(6, 0, "b ?", direction="above"),
        row(7, 7, picture="pictures/square.png"), row(8, 7, "c ?", picture="pictures/square.png"),
        row(9, 8, picture="pictures/deep.png"), row(10, 9, picture="pictures/text.png"),
        row(11, 5, picture="pictures/cut.png"), row(12, 3, "leak ?"), row(13, 6, picture="pictures/lost.png"),
    ]  # fmt: skip
    return [table("train", row(2, 0), *bad), *THREE[1:]]


MESSAGES = [
    f"{line}, {SKIP}"
    for line in """\
qa.csv:3: the row has no query; mend or remove the row
qa.csv:4: the row has no annotation; mend or remove the row
qa.csv:5: the row has no url and no query and no annotation; mend or remove the row
qa.csv:6: direction 'above' is unknown; allowed: front, front-right, right, back-right, back, back-left, left, \
front-left; mend or remove the row
qa.csv:7: photos/p7.jpg: the picture has 16 x 16 px, which is 1.00:1; allowed: equirectangular panoramas, 2:1 \
within 2%; leave it out, or cut or extend it to the full sphere
qa.csv:9: photos/p8.jpg: the picture has pixels of the type 'I;16'; allowed: 1, L, LA, P, RGB, RGBA, CMYK, YCbCr; \
convert it to RGB of 8 bits
qa.csv:10: photos/p9.jpg: the picture cannot be read (of no known format); get it again, or leave it out
qa.csv:13: photos/p6.jpg: the picture cannot be read (no such file); get it again, or leave it out
qa.csv:12: the picture 'photos/p3.jpg' is in train (qa.csv:12) and test (test.csv:2); allowed: each picture in one \
split; take it out of the other tables
qa.csv:11: photos/p5.jpg: the picture cannot be read (image file is truncated); get it again, or leave it out
""".splitlines()
]


def test_everything_wrong_is_said_at_once(raw: Path, prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError) as caught:
        prepare(spoil(raw), {}, settings(), raw, prepared)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == MESSAGES
    assert str(caught.value) == MESSAGES[0].replace("no query;", "no query (and 9 more errors, see the log);")


def test_bad_rows_are_skipped_and_counted(raw: Path, prepared: Path, caplog: pytest.LogCaptureFixture) -> None:
    tables = spoil(raw)
    samples = prepare(tables, {}, settings(bad_rows="skip"), raw, prepared)
    data = opened(samples, prepared)  # whose arrays have as many rows as pictures are left
    assert data.pictures["picture"].to_list() == ["p0", "p3", "p2"]
    assert set(samples.filter(pl.col("group") == "p3")["split"]) == {"test"}
    renderer = Renderer(find_views(VIEWS), VIEWS)
    for number, seed in enumerate((0, 3, 2)):
        np.testing.assert_array_equal(data.pixels[number], renderer(pixels(seed)))
    said, rows = report(prepared)
    assert (said["kept"], said["duplicate"], said["skipped"]) == (5, 1, 11)
    assert [line for file, line, state, _ in rows if state == "skipped"] == list(range(3, 14))
    assert all(reason for *_, state, reason in rows if state == "skipped")
    assert "11 of 17 rows are skipped, see report.parquet" in caplog.text


def test_pictures_that_could_not_be_fetched_are_skipped(raw: Path, prepared: Path) -> None:
    dead = table("train", row(2, 0), row(3, 1, picture=""))
    samples = prepare([dead, *THREE[1:]], {}, settings(), raw, prepared)
    assert samples["group"].to_list() == ["p0", "p2", "p3", "p3"]
    assert report(prepared)[0]["reasons"] == {"the picture could not be fetched": 1}


def test_splits_with_too_few_pictures(raw: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST", LEAST)
    given = [table(split, row(2, number), file=f"{split}.csv") for number, split in enumerate(("train", "test"))]
    with pytest.raises(DataError) as caught:
        prepare(given, {}, settings(), raw, prepared)
    assert str(caught.value) == (
        "train.csv, test.csv: of 2 pictures, train has 1, validation has 0 and test has 1; allowed: at least 1 in"
        " train, 1 in validation and 5 in test; add pictures, with questions and answers, to validation and test"
    )
    assert not any(prepared.glob("*.npy"))  # nothing was rendered
    hashed = table(None, *(row(2 + number, number) for number in range(6)))
    dealt = r"test; add pictures.* to test, give each split a table of its own, or .*and preprocess\.split_seed"
    with pytest.raises(DataError, match=dealt):
        prepare([hashed], {}, settings(validation_fraction=0.5, test_fraction=0.1), raw, prepared)


def test_pictures_that_only_decoding_refuses_do_not_count(
    raw: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST", {"train": 1, "validation": 1, "test": 2})
    whole = (raw / "pictures/5.png").read_bytes()
    (raw / "pictures/5.png").write_bytes(whole[: len(whole) // 2])
    tables = [*THREE, table("test", row(2, 5), file="more.csv")]
    with pytest.raises(DataError, match=r"validation has 1 and test has 1; allowed: .* 2 in test; .* to test$"):
        prepare(tables, {}, settings(bad_rows="skip"), raw, prepared)


def test_questions_with_the_same_id(raw: Path, prepared: Path) -> None:
    rows = row(2, 0, "is object 8335 red ?"), row(3, 0, "is object 42238 red ?")
    with pytest.raises(DataError, match=r"^qa\.csv:3: the questions 'is object 42238 .* same id 'p0-a82274ed'"):
        prepare([table("train", *rows), *THREE[1:]], {}, settings(), raw, prepared)
