"""The Kaggle files: linked and never touched, every rule with a message of its own, fetched through the client."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manyscope.errors import DataError, MissingDependencyError
from manyscope.scopes.neutrinos.data import kaggle
from manyscope.scopes.neutrinos.data.detector import built_in_detector, write_geometry
from manyscope.scopes.neutrinos.data.kaggle import Kaggle, kaggle_files
from manyscope.scopes.neutrinos.data.sources import Events
from manyscope.scopes.neutrinos.settings import KaggleSettings, NeutrinosDownload

EVENTS = 5
NOTHING = pl.DataFrame()


def batch(number: int, seed: int, lengths: list[int] | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Pulses and meta rows of one file; the ids of its events are 100 * number, + 3, + 6, …"""
    rng = np.random.default_rng(seed)
    lengths = [int(n) for n in rng.integers(1, 9, EVENTS)] if lengths is None else lengths
    ids = 100 * number + 3 * np.arange(len(lengths))
    last = np.cumsum(lengths) - 1
    n = int(last[-1]) + 1
    times = np.concatenate([np.sort(rng.integers(5000, 15000, k)) for k in lengths])
    pulses = pl.DataFrame({
        "sensor_id": rng.integers(0, 5160, n).astype(np.int16),
        "time": times.astype(np.int64),
        "charge": rng.integers(1, 80, n) * 0.025,
        "auxiliary": rng.random(n) < 0.5,
        "event_id": np.repeat(ids, lengths).astype(np.int64),
    })  # fmt: skip
    meta = pl.DataFrame({
        "batch_id": np.full(len(lengths), number),
        "event_id": ids,
        "first_pulse_index": last - lengths + 1,
        "last_pulse_index": last,
        "azimuth": rng.uniform(0, 2 * np.pi, len(lengths)),
        "zenith": rng.uniform(0, np.pi, len(lengths)),
    })  # fmt: skip
    return pulses, meta


def write_folder(folder: Path, lengths: dict[int, list[int]] | None = None, test: bool = True) -> None:
    for name in ("train", "test") if test else ("train",):
        (folder / name).mkdir(parents=True)
    train = {n: batch(n, n, (lengths or {}).get(n)) for n in (lengths or (1, 2))}
    for number, (pulses, _) in train.items():
        pulses.write_parquet(folder / f"train/batch_{number}.parquet")
    pl.concat([meta for _, meta in train.values()]).write_parquet(folder / "train_meta.parquet")
    if test:
        pulses, meta = batch(661, 661)
        pulses.write_parquet(folder / "test/batch_661.parquet")
        meta.drop("azimuth", "zenith").write_parquet(folder / "test_meta.parquet")
    write_geometry(folder / "sensor_geometry.csv", built_in_detector())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training files and a test file of five events each."""
    write_folder(tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def chosen(folder: Path | None, **values: object) -> NeutrinosDownload:
    own = KaggleSettings.model_validate({"folder": None if folder is None else str(folder), **values})
    return NeutrinosDownload(source="kaggle", kaggle=own)


def fingerprint(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def change(path: Path, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    edit(pl.read_parquet(path)).write_parquet(path)


def put(column: str, row: int, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """An edit that replaces one value."""
    return lambda table: table.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )


def read(raw: Path, name: str = "batch-000001") -> Events:
    return next(file for file in kaggle_files(raw, ()) if file.name == name).read()


# Linking


def test_the_folder_is_linked_and_untouched(folder: Path, raw: Path) -> None:
    before = fingerprint(folder)
    entries = list(Kaggle().download(chosen(folder), raw))
    assert {entry.path for entry in entries} == {
        "sensor_geometry.csv",
        "train_meta.parquet",
        "train/batch_1.parquet",
        "train/batch_2.parquet",
        "test_meta.parquet",
        "test/batch_661.parquet",
    }
    for entry in entries:
        assert (raw / entry.path).readlink() == folder / entry.path
        assert entry.source == str(folder / entry.path)
    for file in kaggle_files(raw, ()):
        file.read()
    assert list(Kaggle().download(chosen(folder), raw)) == entries
    assert fingerprint(folder) == before


def test_a_relative_folder_gives_absolute_links(folder: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    list(Kaggle().download(chosen(Path("own")), raw))
    assert (raw / "train/batch_1.parquet").readlink() == folder / "train/batch_1.parquet"


def test_only_the_batches_asked_for(folder: Path, raw: Path) -> None:
    list(Kaggle().download(chosen(folder), raw))
    settings = chosen(folder, batches=[2], test=False)
    paths = {entry.path for entry in Kaggle().download(settings, raw)}
    assert paths == {"sensor_geometry.csv", "train_meta.parquet", "train/batch_2.parquet"}
    # links of the first download are gone, the files behind them are not
    assert not (raw / "train/batch_1.parquet").is_symlink()
    assert not (raw / "test_meta.parquet").is_symlink()
    assert (folder / "train/batch_1.parquet").is_file()
    assert [file.name for file in Kaggle().files(settings, raw, NOTHING)] == ["batch-000002"]


@pytest.mark.parametrize("old", ["/nowhere/at/all", "elsewhere"])
def test_a_wrong_or_dangling_link_is_replaced(folder: Path, raw: Path, old: str) -> None:
    other = raw.parent / "elsewhere"
    other.write_text("another file")
    (raw / "train").mkdir()
    (raw / "train/batch_1.parquet").symlink_to(raw.parent / old)
    list(Kaggle().download(chosen(folder), raw))
    assert (raw / "train/batch_1.parquet").readlink() == folder / "train/batch_1.parquet"
    assert other.read_text() == "another file"


def test_a_file_in_the_way_is_not_deleted(folder: Path, raw: Path) -> None:
    (raw / "train").mkdir()
    own = raw / "train/batch_1.parquet"
    own.write_bytes(b"twenty gigabytes")
    with pytest.raises(DataError, match="a file is in the way of a link") as error:
        list(Kaggle().download(chosen(folder), raw))
    assert error.value.place == own
    assert own.read_bytes() == b"twenty gigabytes"


def test_the_raw_folder_itself_may_be_named(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "train/batch_2.parquet").rename(folder.parent / "batch_2.parquet")
    (folder / "train/batch_2.parquet").symlink_to(folder.parent / "batch_2.parquet")
    entries = list(Kaggle().download(chosen(folder, batches=[1]), folder))
    assert len(entries) == 5
    assert (folder / "train/batch_2.parquet").is_symlink()
    assert fingerprint(folder) == before


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("sensor_geometry.csv", "download.kaggle.folder"),
        ("train_meta.parquet", "download.kaggle.folder"),
        ("test_meta.parquet", "set download.kaggle.test to false"),
    ],
)
def test_a_missing_file_is_named(folder: Path, raw: Path, missing: str, remedy: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(DataError, match=f"the file is missing.*{remedy}") as error:
        list(Kaggle().download(chosen(folder), raw))
    assert error.value.place == folder / missing


def test_a_missing_batch_or_folder_is_named(folder: Path, raw: Path) -> None:
    with pytest.raises(DataError, match=r"batch_7\.parquet: the file is missing.*download\.kaggle\.batches"):
        list(Kaggle().download(chosen(folder, batches=[1, 7]), raw))
    with pytest.raises(DataError, match="no such folder"):
        list(Kaggle().download(chosen(folder / "nowhere"), raw))
    with pytest.raises(DataError, match=r"no file train/batch_N\.parquet"):
        list(Kaggle().download(chosen(raw), raw))
    list(Kaggle().download(chosen(folder), raw))
    with pytest.raises(DataError, match=r"raw/train/batch_7\.parquet: the file is missing"):
        kaggle_files(raw, (7,))


def test_a_folder_without_a_test_file_will_do(tmp_path: Path, raw: Path) -> None:
    write_folder(tmp_path / "own", test=False)
    entries = list(Kaggle().download(chosen(tmp_path / "own"), raw))
    assert not [entry for entry in entries if "test" in entry.path]
    assert [file.name for file in kaggle_files(raw, ())] == ["batch-000001", "batch-000002"]


# Reading


def test_events_are_as_written(folder: Path) -> None:
    files = kaggle_files(folder, ())
    assert [(f.name, f.number, f.labelled) for f in files] == [
        ("batch-000001", 1, True),
        ("batch-000002", 2, True),
        ("test-000661", 661, False),
    ]
    assert all(file.detector is files[0].detector for file in files)
    pulses, meta = batch(2, 2)
    events = files[1].read()
    assert events.sample_id == [str(i) for i in meta["event_id"]]
    assert len(events) == EVENTS
    np.testing.assert_array_equal(events.offsets, [*meta["first_pulse_index"], len(pulses)])
    np.testing.assert_array_equal(events.sensor_id, pulses["sensor_id"])
    np.testing.assert_array_equal(events.time_ns, pulses["time"])
    np.testing.assert_array_equal(events.charge, pulses["charge"].cast(pl.Float32))
    np.testing.assert_array_equal(events.auxiliary, pulses["auxiliary"])
    np.testing.assert_array_equal(events.azimuth, meta["azimuth"])
    np.testing.assert_array_equal(events.zenith, meta["zenith"])
    types = (events.offsets, events.sensor_id, events.time_ns, events.charge, events.auxiliary, events.azimuth)
    assert [str(a.dtype) for a in types] == ["int64", "int32", "float64", "float32", "bool", "float64"]
    assert events.truth.width == 0
    unlabelled = files[2].read()
    assert np.isnan(unlabelled.azimuth).all()
    assert np.isnan(unlabelled.zenith).all()
    assert len(unlabelled.azimuth) == EVENTS


def test_files_can_be_sent_to_other_processes(folder: Path) -> None:
    again = pickle.loads(pickle.dumps(kaggle_files(folder, (2,))[0]))
    assert again.read().sample_id == read(folder, "batch-000002").sample_id


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_every_pulse_comes_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[list[int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("lengths") / "own"
    write_folder(folder, dict(enumerate(lengths, 1)), test=False)
    # the order of the rows of the meta table is free
    change(folder / "train_meta.parquet", lambda t: t.sample(fraction=1, shuffle=True, seed=seed))
    for number, (file, wanted) in enumerate(zip(kaggle_files(folder, ()), lengths, strict=True), 1):
        events = file.read()
        assert np.diff(events.offsets).tolist() == wanted
        pulses, meta = batch(number, number, wanted)
        assert events.sample_id == meta["event_id"].cast(pl.String).to_list()
        np.testing.assert_array_equal(events.azimuth, meta["azimuth"])
        np.testing.assert_array_equal(events.time_ns, pulses["time"])


def test_further_truth_is_joined_by_event(folder: Path, raw: Path) -> None:
    (folder / "truth").mkdir()
    ids = batch(1, 1)[1]["event_id"]
    table = pl.DataFrame({
        "event_id": ids,
        "class": pl.Series(["track", "cascade"] * 2 + ["track"], dtype=pl.Categorical),
        "energy_gev": pl.Series([10, 20, 30, 40, 50]),
        "vertex_x_m": [1.0, 2.0, 3.0, 4.0, 5.0],
        "photons": [[1], [2], [3], [4], [5]],
        "azimuth": [9.0] * 5,
    }).sort("energy_gev", descending=True)  # fmt: skip
    table.write_parquet(folder / "truth/truth_1.parquet")
    assert "truth/truth_1.parquet" in {entry.path for entry in Kaggle().download(chosen(folder), raw)}
    truth = read(raw).truth
    assert truth.schema == {"class": pl.String, "energy_gev": pl.Float64, "vertex_x_m": pl.Float64}
    assert truth["energy_gev"].to_list() == [10, 20, 30, 40, 50]
    assert truth["class"].to_list() == ["track", "cascade", "track", "cascade", "track"]
    assert read(raw, "batch-000002").truth.width == 0

    table.head(4).write_parquet(folder / "truth/truth_1.parquet")
    with pytest.raises(DataError, match=r"truth_1\.parquet: event_id 100 is missing \(1 of 5 events are\)"):
        read(raw)
    pl.concat([table, table.head(1)]).write_parquet(folder / "truth/truth_1.parquet")
    with pytest.raises(DataError, match=r"truth_1\.parquet:5: event_id 112 occurs a second time"):
        read(raw)
    table.with_columns(energy_gev=pl.lit("much")).write_parquet(folder / "truth/truth_1.parquet")
    with pytest.raises(DataError, match=r"truth_1\.parquet: column 'energy_gev' has type String"):
        read(raw)


# Each rule has a message of its own. Slices of batch 1: see LENGTHS.

LENGTHS = {1: [2, 3, 1, 4], 2: [3, 3]}  # rows 0-1, 2-4, 5, 6-9 are events 100, 103, 106, 109

PULSES = [
    ("missing column", lambda t: t.drop("charge"), r": column 'charge' is missing"),
    ("misspelt column", lambda t: t.rename({"charge": "charges"}), r": column 'charge' is missing; did you mean"),
    ("float sensor", lambda t: t.cast({"sensor_id": pl.Float64}), r": column 'sensor_id' has type Float64; allowed"),
    ("float time", lambda t: t.cast({"time": pl.Float64}), r": column 'time' has type Float64; allowed: Int64"),
    ("integer charge", lambda t: t.cast({"charge": pl.Int64}), r": column 'charge' has type Int64; allowed: a float"),
    ("integer flag", lambda t: t.cast({"auxiliary": pl.Int8}), r": column 'auxiliary' has type Int8; allowed: Bool"),
    ("text id", lambda t: t.cast({"event_id": pl.String}), r": column 'event_id' has type String; allowed: an integer"),
    ("sensor too high", put("sensor_id", 3, 5160), r":3: sensor_id is 5160; allowed: 0 to 5159"),
    ("sensor negative", put("sensor_id", 4, -1), r":4: sensor_id is -1; allowed: 0 to 5159"),
    ("null", put("charge", 5, None), r":5: charge is null; allowed: a value in every row"),
    ("null time", put("time", 9, None), r":9: time is null"),
    ("null flag", put("auxiliary", 0, None), r":0: auxiliary is null"),
    ("negative charge", put("charge", 2, -0.5), r":2: charge is -0\.5; allowed: finite and above 0"),
    ("no charge", put("charge", 2, 0.0), r":2: charge is 0\.0; allowed: finite and above 0"),
    ("NaN charge", put("charge", 7, float("nan")), r":7: charge is nan; allowed: finite and above 0"),
    ("infinite charge", put("charge", 7, float("inf")), r":7: charge is inf; allowed: finite and above 0"),
    ("unsorted", put("time", 8, 0), r":8: unsorted events: time 0 comes after \d+ in event 109; allowed: ascending"),
    ("wrong event", put("event_id", 4, 106), r":4: event_id is 106 in the slice of event 103 \(train_meta.parquet:1\)"),
    ("wrong at start", put("event_id", 5, 7), r":5: event_id is 7 in the slice of event 106 \(train_meta.parquet:2\)"),
    ("too many rows", lambda t: pl.concat([t, t.tail(2)]), r":10: rows 10 to 11 belong to no event of train_meta"),
    ("no rows", lambda t: t.clear(), r": the file has no rows; allowed: at least one row"),
]  # fmt: skip

META = [
    ("missing column", lambda t: t.drop("zenith"), r": column 'zenith' is missing"),
    ("text angle", lambda t: t.cast({"zenith": pl.String}), r": column 'zenith' has type String; allowed: a float"),
    ("float index", lambda t: t.cast({"event_id": pl.Float32}), r": column 'event_id' has type Float32; allowed: an"),
    ("NaN angle", put("azimuth", 1, float("nan")), r":1: azimuth is nan; allowed: finite, in \[0, 2 pi\)"),
    ("azimuth too high", put("azimuth", 1, 2 * np.pi), r":1: azimuth is 6\.28\d+; allowed: finite, in \[0, 2 pi\)"),
    ("azimuth negative", put("azimuth", 3, -0.1), r":3: azimuth is -0\.1; allowed: finite, in \[0, 2 pi\)"),
    ("zenith too high", put("zenith", 2, 3.2), r":2: zenith is 3\.2; allowed: finite, in \[0, pi\]"),
    ("infinite zenith", put("zenith", 0, float("inf")), r":0: zenith is inf; allowed: finite, in \[0, pi\]"),
    ("null", put("first_pulse_index", 2, None), r":2: first_pulse_index is null; allowed: a value in every row"),
    ("null angle", put("azimuth", 2, None), r":2: azimuth is null"),
    ("reversed", put("first_pulse_index", 1, 5), r":1: first_pulse_index 5 is above last_pulse_index 4"),
    ("before the file", put("first_pulse_index", 0, -1), r":0: first_pulse_index is -1; allowed: 0 to 9, the rows of"),
    ("behind the file", put("last_pulse_index", 3, 10), r":3: last_pulse_index is 10; allowed: 0 to 9, the rows of"),
    ("repeated id", put("event_id", 3, 100), r":3: event_id 100 occurs a second time; allowed: every event once"),
    ("overlap", put("first_pulse_index", 1, 1), r":1: event 103 starts at row 1, inside event 100 up to row 1"),
    ("no such batch", lambda t: t.filter(pl.col("batch_id") != 1), r": no row has batch_id 1"),
]  # fmt: skip


@pytest.fixture
def ruled(tmp_path: Path) -> Path:
    write_folder(tmp_path / "own", LENGTHS, test=False)
    read(tmp_path / "own")
    return tmp_path / "own"


@pytest.mark.parametrize(("edit", "message"), [case[1:] for case in PULSES], ids=[case[0] for case in PULSES])
def test_rules_of_pulses(ruled: Path, edit: Callable[[pl.DataFrame], pl.DataFrame], message: str) -> None:
    change(ruled / "train/batch_1.parquet", edit)
    with pytest.raises(DataError, match=r"own/train/batch_1\.parquet" + message) as error:
        read(ruled)
    assert "\n" not in str(error.value)
    assert read(ruled, "batch-000002").sample_id == ["200", "203"]


@pytest.mark.parametrize(("edit", "message"), [case[1:] for case in META], ids=[case[0] for case in META])
def test_rules_of_the_meta_table(ruled: Path, edit: Callable[[pl.DataFrame], pl.DataFrame], message: str) -> None:
    change(ruled / "train_meta.parquet", edit)
    with pytest.raises(DataError, match=r"own/train_meta\.parquet" + message):
        read(ruled)


def test_a_gap_between_slices_names_the_pulses(ruled: Path) -> None:
    change(ruled / "train_meta.parquet", lambda t: t.filter(pl.col("event_id") != 103))
    with pytest.raises(DataError, match=r"batch_1\.parquet:2: rows 2 to 4 belong to no event of train_meta\.parquet"):
        read(ruled)


def test_rows_of_the_meta_table_are_those_of_the_whole_file(ruled: Path) -> None:
    change(ruled / "train_meta.parquet", put("zenith", 5, -1.0))
    with pytest.raises(DataError, match=r"train_meta\.parquet:5: zenith is -1\.0") as error:
        read(ruled, "batch-000002")
    assert "rows count from 0" in str(error.value)
    read(ruled)


def test_several_wrong_rows_are_counted(ruled: Path) -> None:
    change(ruled / "train/batch_1.parquet", lambda t: t.with_columns(charge=pl.col("charge") * -1))
    with pytest.raises(DataError, match=r":0: charge is .* \(10 such rows\)"):
        read(ruled)


@pytest.mark.parametrize("name", ["train/batch_1.parquet", "train_meta.parquet"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(ruled: Path, name: str, kept: float) -> None:
    content = (ruled / name).read_bytes()
    (ruled / name).write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match="not a readable Parquet file") as error:
        read(ruled)
    assert error.value.place == ruled / name


def test_damage_inside_a_file_is_named(ruled: Path) -> None:
    path = ruled / "train/batch_1.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = np.random.default_rng(0).bytes(196)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"batch_1\.parquet"):
        read(ruled)


def test_a_missing_file_behind_a_link_asks_for_the_download(folder: Path, raw: Path) -> None:
    list(Kaggle().download(chosen(folder), raw))
    files = kaggle_files(raw, ())
    (folder / "train/batch_1.parquet").unlink()
    with pytest.raises(DataError, match=r"batch_1\.parquet: the file is missing.*run the stage 'download'"):
        files[0].read()


@pytest.mark.parametrize(("dropped", "line"), [(1, "2:"), (40, "41:")])
def test_a_geometry_with_a_missing_row_is_named(folder: Path, dropped: int, line: str) -> None:
    lines = (folder / "sensor_geometry.csv").read_text().splitlines(keepends=True)
    (folder / "sensor_geometry.csv").write_text("".join(lines[:dropped] + lines[dropped + 1 :]))
    with pytest.raises(DataError, match=rf"sensor_geometry\.csv:{line} sensor_id {dropped}"):
        kaggle_files(folder, ())


def test_a_geometry_without_its_last_rows_does_not_fit_the_pulses(folder: Path) -> None:
    lines = (folder / "sensor_geometry.csv").read_text().splitlines(keepends=True)
    (folder / "sensor_geometry.csv").write_text("".join(lines[:-60]))
    change(folder / "train/batch_1.parquet", put("sensor_id", 0, 5159))
    with pytest.raises(DataError, match=r"batch_1\.parquet:0: sensor_id is 5159.*allowed: 0 to 5099, the rows of the"):
        read(folder)


# Fetching


class Response:
    def __init__(self, status: int) -> None:
        self.status_code = status


class HttpError(OSError):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error for url: https://example.org/file?Signature=secret")
        self.response = Response(status)


class StandIn:
    """The part of the client that is used; it serves the files of a folder."""

    served: Path
    packed: tuple[str, ...] = ()
    status: dict[str, int] = {}  # noqa: RUF012 - replaced, never changed
    calls: list[str] = []  # noqa: RUF012
    sign_in: Callable[[], None] = staticmethod(lambda: None)

    def authenticate(self) -> None:
        StandIn.sign_in()

    def competition_download_file(
        self, competition: str, file_name: str, path: str | None = None, force: bool = False, quiet: bool = False
    ) -> None:
        assert competition == "icecube-neutrinos-in-deep-ice"
        assert path
        StandIn.calls.append(file_name)
        print("Downloading …")
        if file_name in StandIn.status:
            raise HttpError(StandIn.status[file_name])
        base, content = file_name.rsplit("/")[-1], (StandIn.served / file_name).read_bytes()
        if file_name in StandIn.packed:
            with zipfile.ZipFile(Path(path) / f"{base}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(base, content)
        else:
            (Path(path) / base).write_bytes(content)


@pytest.fixture
def client(folder: Path, monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    """A stand-in for the official client, which serves batches 1 and 2 of a small data set."""
    inner = types.ModuleType("kaggle.api.kaggle_api_extended")
    inner.KaggleApi = StandIn  # type: ignore[attr-defined]
    for name in ("kaggle", "kaggle.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "kaggle.api.kaggle_api_extended", inner)
    for name, value in {"served": folder, "packed": (), "status": {}, "calls": []}.items():
        monkeypatch.setattr(StandIn, name, value, raising=False)
    monkeypatch.setattr(StandIn, "sign_in", staticmethod(lambda: None))
    return StandIn


FETCHED = [
    "sensor_geometry.csv",
    "train_meta.parquet",
    "train/batch_1.parquet",
    "train/batch_2.parquet",
    "test_meta.parquet",
    "test/batch_661.parquet",
]


def test_files_are_fetched_once(
    client: type[StandIn], folder: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.packed = ("train_meta.parquet", "train/batch_1.parquet", "sensor_geometry.csv")
    settings = chosen(None, batches=[2, 1])
    entries = list(Kaggle().download(settings, raw))
    assert client.calls == FETCHED
    assert capsys.readouterr().out == ""
    assert [entry.path for entry in entries] == FETCHED
    assert entries[2].source == "kaggle: icecube-neutrinos-in-deep-ice/train/batch_1.parquet"
    for entry in entries:
        assert (raw / entry.path).read_bytes() == (folder / entry.path).read_bytes()
        assert not (raw / entry.path).readlink().is_absolute()  # the results may be moved as a whole
    assert not list(raw.rglob(".*"))
    assert read(raw).sample_id == read(folder).sample_id

    # what is there and whole is kept; a file cut short is fetched again
    victim = raw / "fetched/train/batch_2.parquet"
    victim.write_bytes(victim.read_bytes()[:-5])
    assert list(Kaggle().download(settings, raw)) == entries
    assert client.calls == [*FETCHED, "train/batch_2.parquet"]
    assert victim.read_bytes() == (folder / "train/batch_2.parquet").read_bytes()


def test_all_files_are_fetched_without_a_choice() -> None:
    names = kaggle._competition_files((), True)
    assert len(names) == 664
    assert names[2] == "train/batch_1.parquet"
    assert names[-3:] == ["train/batch_660.parquet", "test_meta.parquet", "test/batch_661.parquet"]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (403, MissingDependencyError, r"HTTP 403.*accept the competition's rules"),
        (401, MissingDependencyError, r"refused the credentials.*~/\.kaggle/kaggle\.json"),
        (404, DataError, r"no such file.*training files 1 to 660"),
        (500, DataError, r"cannot be fetched \(500 Client Error.*run the same command again"),
    ],
)
def test_refusals_come_with_a_remedy(
    client: type[StandIn], raw: Path, status: int, kind: type[Exception], message: str
) -> None:
    client.status = {"train/batch_1.parquet": status}
    with pytest.raises(kind, match=message) as error:
        list(Kaggle().download(chosen(None, batches=[1]), raw))
    assert "train/batch_1.parquet" in str(error.value)
    assert "secret" not in str(error.value)
    # what arrived before is kept, and the next run goes on from there
    client.status = {}
    list(Kaggle().download(chosen(None, batches=[1]), raw))
    assert client.calls.count("train_meta.parquet") == 1


def test_without_the_client_there_are_instructions(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kaggle", None)
    monkeypatch.delitem(sys.modules, "kaggle.api.kaggle_api_extended", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install kaggle six; accept the rules on kaggle\.com/comp"):
        list(Kaggle().download(chosen(None), raw))


@pytest.mark.parametrize("failure", [SystemExit(1), OSError("Could not find kaggle.json"), ValueError("no key")])
def test_without_credentials_there_are_instructions(
    client: type[StandIn], raw: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    def refuse() -> None:
        raise failure

    monkeypatch.setattr(StandIn, "sign_in", staticmethod(refuse))
    with pytest.raises(MissingDependencyError, match=r"no credentials.*KAGGLE_USERNAME and KAGGLE_KEY"):
        list(Kaggle().download(chosen(None), raw))
    assert client.calls == []


def archive(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, content in members:
            packed.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            archive(("../batch_1.parquet", b"x")),
            r"the archive holds \.\./batch_1\.parquet; allowed: train/batch_1\.par",
        ),
        (archive(("/etc/passwd", b"x")), "the archive holds /etc/passwd"),
        (archive(("batch_1.parquet", b"x"), ("more", b"y")), "the archive holds batch_1.parquet, more"),
        (archive(("batch_1.parquet", b"PAR1 and no more")), "what arrived is broken"),
        (archive(("batch_1.parquet", b"x" * 100))[:-40], "the archive is broken"),
        (archive(("batch_1.parquet", b"x" * 100)).replace(b"x" * 100, b"x" * 99 + b"y"), "the archive is broken"),
        (archive(("batch_1.parquet", b"x" * 2001)), "would unpack to 2,001 bytes.*at most 2,000"),
        (b"PAR1, cut short", "what arrived is broken"),
    ],
    ids=["up", "absolute", "two", "broken inside", "cut", "checksum", "large", "plain"],
)
def test_what_arrives_is_checked(
    client: type[StandIn], raw: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(kaggle, "_LARGEST_BYTES", 2000)
    served = raw.parent / "served"
    write_folder(served)
    (served / "train/batch_1.parquet").write_bytes(content)
    client.served = served
    before = {p for p in raw.parent.rglob("*") if raw not in p.parents}
    with pytest.raises(DataError, match=message):
        list(Kaggle().download(chosen(None, batches=[1]), raw))
    assert not (raw / "fetched/train/batch_1.parquet").exists()
    assert not list(raw.rglob(".*"))
    assert {p for p in raw.parent.rglob("*") if raw not in p.parents} == before


def test_a_client_that_leaves_nothing_is_an_error(
    client: type[StandIn], raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandIn, "competition_download_file", lambda *_, **__: None)
    with pytest.raises(DataError, match=r"client left nothing; allowed: sensor_geometry\.csv or"):
        list(Kaggle().download(chosen(None), raw))
