"""Tables in the layout of GraphNeT: linked, converted to IceCube's numbering, and checked row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyscope.errors import DataError, SettingsError
from manyscope.scopes.neutrinos.data.detector import built_in_detector, read_detector
from manyscope.scopes.neutrinos.data.files import Files, extra_files, file_problems, link_extra
from manyscope.scopes.neutrinos.data.sources import EventFile, Events
from manyscope.scopes.neutrinos.settings import NeutrinosDownload

# Real events, beside the repository where somebody has put them.
SAMPLES = Path(__file__).resolve().parents[4] / "shared/data/neutrinos"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no sample events in {SAMPLES}")

NOTHING = pl.DataFrame()
POSITION = built_in_detector().position_m


def icecube(folder: Path, seed: int = 0, events: int = 4) -> tuple[Path, Path]:
    """Pulses in random order and the truth of events 10, 11, …; the truth has one event more, without pulses."""
    rng = np.random.default_rng(seed)
    n = 6 * events
    string, dom = rng.integers(1, 87, n), rng.integers(1, 61, n)
    x, y, z = (POSITION[60 * (string - 1) + dom - 1] + rng.uniform(-5, 5, (n, 3))).T
    pulses = pl.DataFrame({
        "charge": rng.uniform(0.1, 3, n), "dom_time": rng.uniform(9000, 12000, n), "dom_x": x, "dom_y": y, "dom_z": z,
        "hlc": rng.integers(0, 2, n), "string": string, "dom_number": dom,
        "event_no": 10 + rng.permutation(np.arange(n) % events),
    })  # fmt: skip
    truth = pl.DataFrame({
        "energy": rng.uniform(1, 9, events + 1), "azimuth": rng.uniform(0, 6, events + 1),
        "zenith": rng.uniform(0, 3, events + 1), "pid": [14, -12, 16, -14, 14][: events + 1],
        "interaction_type": [1.0, 1.0, 1.0, 2.0, 1.0][: events + 1], "event_no": 10 + np.arange(events + 1),
    })  # fmt: skip
    folder.mkdir(exist_ok=True)
    pulses.write_parquet(folder / "pulses.parquet")
    truth.write_parquet(folder / "truth.parquet")
    return folder / "pulses.parquet", folder / "truth.parquet"


def prometheus(folder: Path) -> Path:
    """Three events in a detector of two strings of three modules."""
    positions = np.array([(x, 5.0, z) for x in (100.0, 200.0) for z in (-60.0, -40.0, -20.0)])
    which = np.array([5, 0, 2, 2, 4, 1, 0, 3])
    x, y, z = positions[which].T
    table = pl.DataFrame({
        "sensor_pos_x": x, "sensor_pos_y": y, "sensor_pos_z": z,
        "t": [50.0, 20.5, 30.25, 30.0, 7.0, 9.0, 400.0, 401.0], "event_no": [3, 3, 3, 1, 1, 1, 2, 2],
    })  # fmt: skip
    folder.mkdir(exist_ok=True)
    table.write_parquet(folder / "photons.parquet")
    return folder / "photons.parquet"


def entry(name: str, layout: str, pulses: Path, truth: Path | None = None) -> dict[str, object]:
    return {"name": name, "layout": layout, "pulses": str(pulses), "truth": None if truth is None else str(truth)}


def source(*entries: dict[str, object]) -> NeutrinosDownload:
    return NeutrinosDownload.model_validate({"source": "files", "files": entries})


def files(tmp_path: Path, *entries: dict[str, object]) -> list[EventFile]:
    chosen = source(*entries)
    list(Files().download(chosen, tmp_path / "raw"))
    return Files().files(chosen, tmp_path / "raw", NOTHING)


def check_form(events: Events, file: EventFile) -> None:
    """What every reader of events relies on."""
    n = len(events.sensor_id)
    assert events.offsets[0] == 0
    assert events.offsets[-1] == n
    assert (np.diff(events.offsets) > 0).all()
    assert len(events.sample_id) == len(set(events.sample_id)) == len(events)
    assert len(events.azimuth) == len(events.zenith) == len(events)
    types = (events.offsets, events.sensor_id, events.time_ns, events.charge, events.auxiliary)
    assert [str(a.dtype) for a in types] == ["int64", "int32", "float64", "float32", "bool"]
    assert ((events.sensor_id >= 0) & (events.sensor_id < len(file.detector))).all()
    inner = np.ones(n, bool)
    inner[events.offsets[:-1]] = False
    assert (np.diff(events.time_ns, prepend=0)[inner] >= 0).all()


def test_icecube_events_are_converted(tmp_path: Path) -> None:
    pulses, truth = icecube(tmp_path / "own")
    before = [(p.read_bytes(), p.stat().st_mtime_ns) for p in (pulses, truth)]
    chosen = source(entry("osc", "icecube", pulses, truth))
    entries = list(Files().download(chosen, tmp_path / "raw"))
    assert [(e.path, e.source) for e in entries] == [
        ("files/osc/pulses.parquet", str(pulses)),
        ("files/osc/truth.parquet", str(truth)),
    ]
    assert (tmp_path / "raw/files/osc/pulses.parquet").readlink() == pulses
    (file,) = Files().files(chosen, tmp_path / "raw", NOTHING)
    assert (file.name, file.number, file.labelled) == ("file-osc", None, True)
    events = file.read()
    check_form(events, file)
    assert events.sample_id == ["osc-10", "osc-11", "osc-12", "osc-13"]

    rows = (
        pl.read_parquet(pulses)
        .with_columns(time=pl.col("dom_time").round())
        .sort("event_no", "time", maintain_order=True)
    )
    np.testing.assert_array_equal(np.diff(events.offsets), rows.group_by("event_no", maintain_order=True).len()["len"])
    np.testing.assert_array_equal(events.time_ns, rows["time"])
    np.testing.assert_array_equal(events.charge, rows["charge"].cast(pl.Float32))
    np.testing.assert_array_equal(events.auxiliary, rows["hlc"] == 0)
    np.testing.assert_array_equal(events.sensor_id // 60 + 1, rows["string"])
    np.testing.assert_array_equal(events.sensor_id % 60 + 1, rows["dom_number"])

    known = pl.read_parquet(truth).head(4)
    np.testing.assert_array_equal(events.azimuth, known["azimuth"])
    np.testing.assert_array_equal(events.zenith, known["zenith"])
    assert events.truth["energy_gev"].to_list() == known["energy"].to_list()
    assert events.truth["pid"].to_list() == [14, -12, 16, -14]
    assert events.truth["class"].to_list() == ["track", "cascade", "cascade", "cascade"]
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in (pulses, truth)] == before


def test_without_truth_events_are_only_predicted(tmp_path: Path) -> None:
    pulses, _ = icecube(tmp_path / "own")
    (file,) = files(tmp_path, entry("osc", "icecube", pulses))
    events = file.read()
    assert not file.labelled
    assert np.isnan(events.azimuth).all()
    assert np.isnan(events.zenith).all()
    assert events.truth.width == 0


def test_beside_another_source_nothing_is_labelled(tmp_path: Path) -> None:
    pulses, truth = icecube(tmp_path / "own")
    photons = prometheus(tmp_path / "own")
    chosen = source(entry("osc", "icecube", pulses, truth), entry("orca", "prometheus", photons))
    chosen = chosen.model_copy(update={"source": "simulated"})
    assert len(list(link_extra(chosen, tmp_path / "raw"))) == 3
    extra = extra_files(chosen, tmp_path / "raw")
    assert [(file.name, file.labelled) for file in extra] == [("file-osc", False), ("file-orca", False)]
    assert extra[0].read().sample_id[0] == "osc-10"
    assert list(link_extra(NeutrinosDownload(), tmp_path / "raw")) == []
    assert extra_files(NeutrinosDownload(), tmp_path / "raw") == []


def test_prometheus_brings_its_own_detector(tmp_path: Path) -> None:
    (file,) = files(tmp_path, entry("orca", "prometheus", prometheus(tmp_path / "own")))
    assert not file.labelled
    detector, events = file.detector, file.read()
    check_form(events, file)
    # sorted by x, then z, and relative to their mean
    np.testing.assert_allclose(detector.position_m.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(detector.position_m[:, 0], [-50, -50, -50, 50, 50, 50])
    np.testing.assert_allclose(detector.position_m[:, 2], [-20, 0, 20, -20, 0, 20], atol=1e-12)
    assert len(np.unique(detector.scattering_m)) == len(np.unique(detector.absorption_m)) == 1
    assert not detector.dense.any()
    assert events.sample_id == ["orca-1", "orca-2", "orca-3"]
    assert events.offsets.tolist() == [0, 3, 5, 8]
    assert events.sensor_id.tolist() == [4, 1, 2, 0, 3, 0, 2, 5]
    np.testing.assert_allclose(events.time_ns, 1e4 + np.array([0, 2, 23, 0, 1, 0, 9.75, 29.5]))
    assert (events.charge == 1).all()
    assert not events.auxiliary.any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), events=st.integers(1, 4))
def test_the_order_of_rows_does_not_matter(tmp_path_factory: pytest.TempPathFactory, seed: int, events: int) -> None:
    tmp_path = tmp_path_factory.mktemp("rows")
    pulses, truth = icecube(tmp_path / "own", seed, events)
    wanted = files(tmp_path, entry("osc", "icecube", pulses, truth))[0].read()
    for path in (pulses, truth):
        pl.read_parquet(path).sample(fraction=1, shuffle=True, seed=seed).write_parquet(path)
    found = files(tmp_path, entry("osc", "icecube", pulses, truth))[0].read()
    assert found.sample_id == wanted.sample_id
    assert found.truth.equals(wanted.truth)
    np.testing.assert_array_equal(found.time_ns, wanted.time_ns)
    np.testing.assert_array_equal(found.azimuth, wanted.azimuth)
    by_time = [np.lexsort((e.sensor_id, e.time_ns)) for e in (found, wanted)]
    np.testing.assert_array_equal(found.sensor_id[by_time[0]], wanted.sensor_id[by_time[1]])
    np.testing.assert_array_equal(found.charge[by_time[0]], wanted.charge[by_time[1]])


# Settings


def test_problems_are_told_all_at_once(tmp_path: Path) -> None:
    photons = prometheus(tmp_path / "own")
    chosen = source(
        entry("a", "icecube", tmp_path / "nowhere.parquet", tmp_path / "nothing.parquet"),
        entry("a", "prometheus", photons, photons),
    )
    problems = list(file_problems(chosen))
    assert len(problems) == 4
    assert "'a' is used 2 times" in problems[0]
    assert problems[1].startswith("download.files[0].pulses: no file")
    assert problems[2].startswith("download.files[0].truth: no file")
    assert "in a frame of its own" in problems[3]
    for download in (Files().download(chosen, tmp_path / "raw"), link_extra(chosen, tmp_path / "raw")):
        with pytest.raises(SettingsError) as error:
            list(download)
        assert error.value.problems == tuple(problems)
    assert not (tmp_path / "raw").exists()


def test_the_source_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"download\.files: empty"):
        list(Files().download(source(), tmp_path))


def test_a_changed_path_changes_the_link(tmp_path: Path) -> None:
    one, two = icecube(tmp_path / "one", 1)[0], icecube(tmp_path / "two", 2)[0]
    first = files(tmp_path, entry("osc", "icecube", one))[0].read()
    second = files(tmp_path, entry("osc", "icecube", two))[0].read()
    assert (tmp_path / "raw/files/osc/pulses.parquet").readlink() == two
    assert first.charge.tolist() != second.charge.tolist()


# Rules


def put(column: str, row: int, value: object) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """An edit that replaces one value."""
    return lambda table: table.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )


ICECUBE = [
    ("missing column", lambda t: t.drop("dom_time"), r": column 'dom_time' is missing"),
    ("wrong type", lambda t: t.cast({"dom_time": pl.String}), r": column 'dom_time' has type String; allowed: a type"),
    ("float event", lambda t: t.cast({"event_no": pl.Float64}), r": column 'event_no' has type Float64"),
    ("null", put("dom_x", 3, None), r":3: dom_x is null"),
    ("null event", put("event_no", 3, None), r":3: event_no is null"),
    ("string", put("string", 4, 87), r":4: string is 87\.0; allowed: whole numbers from 1 to 86"),
    ("module", put("dom_number", 5, 0), r":5: dom_number is 0\.0; allowed: whole numbers from 1 to 60"),
    ("half a module", put("dom_number", 5, 1.5), r":5: dom_number is 1\.5; allowed: whole numbers"),
    ("position", put("dom_z", 2, 5000.0), r":2: dom_x, dom_y, dom_z are \d+ m from module \d+ of string \d+; allowed"),
    ("NaN position", put("dom_y", 2, float("nan")), r":2: dom_y is nan; allowed: finite numbers"),
    ("time", put("dom_time", 1, float("inf")), r":1: dom_time is inf; allowed: finite numbers"),
    ("charge", put("charge", 7, -1.0), r":7: charge is -1\.0; allowed: finite and above 0"),
    ("hlc", put("hlc", 6, 2), r":6: hlc is 2; allowed: 0 or 1"),
    ("no rows", lambda t: t.clear(), r": the file has no rows"),
]  # fmt: skip

TRUTH = [
    ("missing column", lambda t: t.drop("azimuth"), r": column 'azimuth' is missing"),
    ("wrong type", lambda t: t.cast({"zenith": pl.String}), r": column 'zenith' has type String; allowed: a float"),
    ("missing event", lambda t: t.slice(1), r": event_no 10 is missing \(1 of 4 events are\)"),
    ("repeated event", put("event_no", 2, 10), r":2: event_no 10 occurs a second time"),
    ("NaN angle", put("azimuth", 1, float("nan")), r":1: azimuth is nan; allowed: finite, in \[0, 2 pi\)"),
    ("angle in degrees", put("zenith", 3, 97.0), r":3: zenith is 97\.0; allowed: finite, in \[0, pi\]"),
    ("null angle", put("zenith", 4, None), r":4: zenith is null"),
    ("text", lambda t: t.with_columns(pid=pl.lit("nu")), r": column 'pid' has type String; allowed: values that Int64"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), [case[1:] for case in ICECUBE], ids=[case[0] for case in ICECUBE])
def test_rules_of_icecube_pulses(tmp_path: Path, edit: Callable[[pl.DataFrame], pl.DataFrame], message: str) -> None:
    pulses, truth = icecube(tmp_path / "own")
    edit(pl.read_parquet(pulses)).write_parquet(pulses)
    with pytest.raises(DataError, match=r"files/osc/pulses\.parquet" + message) as error:
        [file.read() for file in files(tmp_path, entry("osc", "icecube", pulses, truth))]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("edit", "message"), [case[1:] for case in TRUTH], ids=[case[0] for case in TRUTH])
def test_rules_of_icecube_truth(tmp_path: Path, edit: Callable[[pl.DataFrame], pl.DataFrame], message: str) -> None:
    pulses, truth = icecube(tmp_path / "own")
    edit(pl.read_parquet(truth)).write_parquet(truth)
    (file,) = files(tmp_path, entry("osc", "icecube", pulses, truth))
    with pytest.raises(DataError, match=r"files/osc/truth\.parquet" + message):
        file.read()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.drop("sensor_pos_z"), r": column 'sensor_pos_z' is missing"),
        (put("sensor_pos_x", 1, float("nan")), r":1: sensor_pos_x is nan"),
        (put("t", 2, None), r":2: t is null"),
        (lambda t: t.drop("event_no"), r": column 'event_no' is missing"),
    ],
    ids=["missing column", "NaN position", "null time", "no events"],
)
def test_rules_of_prometheus(tmp_path: Path, edit: Callable[[pl.DataFrame], pl.DataFrame], message: str) -> None:
    photons = prometheus(tmp_path / "own")
    edit(pl.read_parquet(photons)).write_parquet(photons)
    with pytest.raises(DataError, match=r"files/orca/pulses\.parquet" + message):
        files(tmp_path, entry("orca", "prometheus", photons))[0].read()


@pytest.mark.parametrize("layout", ["icecube", "prometheus"])
def test_a_truncated_file_is_named(tmp_path: Path, layout: str) -> None:
    pulses = icecube(tmp_path / "own")[0] if layout == "icecube" else prometheus(tmp_path / "own")
    pulses.write_bytes(pulses.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"files/x/pulses\.parquet: not a readable Parquet file"):
        files(tmp_path, entry("x", layout, pulses))[0].read()


# Real events


@needs_samples
def test_official_events_load(tmp_path: Path) -> None:
    pulses, truth = SAMPLES / "oscnext_pulses.parquet", SAMPLES / "oscnext_truth.parquet"
    (file,) = files(tmp_path, entry("oscnext", "icecube", pulses, truth))
    events = file.read()
    check_form(events, file)
    assert file.labelled
    assert (len(events), len(events.sensor_id)) == (5, 56)
    assert events.sample_id == [f"oscnext-{i}" for i in range(5)]
    assert events.truth.columns == ["class", "energy_gev", "pid"]
    assert events.truth["class"].to_list() == ["track"] * 5
    # the positions in the file are those that the real geometry has for the same numbers
    real = read_detector(SAMPLES / "sensor_geometry.csv")
    rows = (
        pl.read_parquet(pulses)
        .with_columns(pl.col("dom_time").round())
        .sort("event_no", "dom_time", maintain_order=True)
    )
    lit = rows.select("dom_x", "dom_y", "dom_z").to_numpy()
    np.testing.assert_allclose(real.position_m[events.sensor_id], lit, atol=0.01)


@needs_samples
def test_every_real_position_is_accepted(tmp_path: Path) -> None:
    real = read_detector(SAMPLES / "sensor_geometry.csv").position_m
    sensor = np.arange(len(real))
    x, y, z = real.T
    table = pl.DataFrame({
        "string": sensor // 60 + 1, "dom_number": sensor % 60 + 1, "dom_x": x, "dom_y": y, "dom_z": z,
        "dom_time": sensor * 1.0, "charge": 1.0, "hlc": 1, "event_no": 0,
    })  # fmt: skip
    table.write_parquet(tmp_path / "all.parquet")
    events = files(tmp_path, entry("all", "icecube", tmp_path / "all.parquet"))[0].read()
    np.testing.assert_array_equal(events.sensor_id, sensor)


@needs_samples
def test_prometheus_events_load(tmp_path: Path) -> None:
    (file,) = files(tmp_path, entry("orca", "prometheus", SAMPLES / "prometheus_pulses.parquet"))
    events = file.read()
    check_form(events, file)
    assert not file.labelled
    assert (len(events), len(events.sensor_id), len(file.detector)) == (50, 1872, 503)
    assert (events.time_ns[events.offsets[:-1]] == 10_000).all()
    # distances between lit modules are those of the file
    rows = pl.read_parquet(SAMPLES / "prometheus_pulses.parquet").sort("event_no", "t", maintain_order=True)
    lit = rows.select("sensor_pos_x", "sensor_pos_y", "sensor_pos_z").to_numpy()
    np.testing.assert_allclose(
        np.diff(file.detector.position_m[events.sensor_id], axis=0), np.diff(lit, axis=0), atol=1e-9
    )


def test_modules_of_an_icecube_file_stand_where_it_says(tmp_path: Path) -> None:
    pulses, truth = icecube(tmp_path / "own")
    moved = pl.read_parquet(pulses).with_columns(pl.col("dom_x") + 2.5)
    moved.write_parquet(pulses)
    (file,) = files(tmp_path, entry("osc", "icecube", pulses, truth))
    events = file.read()
    seen = np.unique(events.sensor_id)
    table = moved.select((60 * (pl.col("string") - 1) + pl.col("dom_number") - 1).cast(pl.Int64).alias("id"), "dom_x")
    expected = dict(table.iter_rows())
    np.testing.assert_allclose(file.detector.position_m[seen, 0], [expected[int(i)] for i in seen])
    others = np.setdiff1d(np.arange(5160), seen)
    np.testing.assert_array_equal(file.detector.position_m[others], built_in_detector().position_m[others])
