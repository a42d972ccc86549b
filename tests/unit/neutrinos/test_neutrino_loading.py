"""Batches are what a loop over events would build; nothing is lost, and nothing is cut without a count."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from manyscope.errors import DataError
from manyscope.scopes.neutrinos.data import forms
from manyscope.scopes.neutrinos.data.detector import built_in_detector
from manyscope.scopes.neutrinos.data.loading import EventData
from manyscope.scopes.neutrinos.data.prepare import prepare
from manyscope.scopes.neutrinos.data.sources import EventFile, Events
from manyscope.scopes.neutrinos.settings import InputSettings, NeutrinosPreprocess
from manyscope.tables.parquet import write_table

EVERYTHING = InputSettings(max_doms=5160, max_pulses=200_000, isolated="all")


def test_a_batch_is_what_a_loop_over_its_events_builds(prepared_events: Path) -> None:
    settings = InputSettings(max_doms=9, max_pulses=3, isolated="near")
    data = EventData(prepared_events, settings, forms.Form("ragged", beside=True))
    shard = data.shards[0]
    rows = np.array([200, 3, 57, 329])
    batch = data.batch(rows)
    module = pulse = 0
    for i, row in enumerate(rows):
        first, last = shard.module_offsets[row], shard.module_offsets[row + 1]
        count = min(9, int(shard.shown[row, 1]))
        assert batch["module_counts"][i] == count
        assert batch["counts"][i].tolist() == [
            shard.pulse_offsets[last] - shard.pulse_offsets[first], last - first, shard.shown[row, 0],
        ]  # fmt: skip
        for m in range(first, first + count):
            np.testing.assert_array_equal(batch["modules"][module], shard.modules[m])
            np.testing.assert_array_equal(batch["sensors"][module], data.sensors[shard.sensor[m]])
            all_pulses = shard.pulses[shard.pulse_offsets[m] : shard.pulse_offsets[m + 1]]
            kept = all_pulses[:3]
            for column, away in enumerate(shard.beside[m]):
                charge, later = shard.modules[m + away, 1], shard.modules[m + away, 0] - shard.modules[m, 0]
                expected = [charge, later] if away else [0, 0]
                np.testing.assert_array_equal(batch["beside"][module, column], np.array(expected, np.float32))
            assert batch["pulse_counts"][module] == len(kept)
            assert batch["pulses_seen"][module] == len(all_pulses)
            np.testing.assert_array_equal(batch["pulses"][pulse : pulse + len(kept)], kept)
            module, pulse = module + 1, pulse + len(kept)
        for name in ("origin", "line_fit", "direction"):
            np.testing.assert_array_equal(batch[name][i], getattr(shard, name)[row])
    assert module == len(batch["modules"])
    assert pulse == len(batch["pulses"])
    assert batch["sample_id"] == data.samples["sample_id"].gather(rows).to_list()
    assert batch["length"] == int(batch["module_counts"].max())


def test_without_limits_every_pulse_is_there_once(prepared_events: Path) -> None:
    data = EventData(prepared_events, EVERYTHING)
    batch = data.batch(np.arange(len(data.samples)))
    assert len(batch["pulses"]) == len(data.shards[0].pulses) == data.samples["n_pulses"].sum()
    assert len(batch["modules"]) == data.samples["n_modules"].sum()


@pytest.mark.parametrize("isolated", ["near", "all", "none"])
def test_every_event_has_at_least_one_module(prepared_events: Path, isolated: str) -> None:
    data = EventData(prepared_events, InputSettings(isolated=isolated, max_doms=4))  # type: ignore[arg-type]
    assert data.lengths.min() >= 1
    assert data.lengths.max() == 4


def test_a_pass_of_training_shows_each_training_event_once(prepared_events: Path) -> None:
    data = EventData(prepared_events, InputSettings())
    schedule = data.train_schedule(32, seed=0)
    seen = [i for s in range(schedule.batches_per_epoch) for i in data.train_batch(schedule.batch(s))["sample_id"]]
    train = data.samples.filter(pl.col("split") == "train")["sample_id"].to_list()
    assert sorted(seen) == sorted(train)
    assert data.train_size == len(train)


def test_processes_share_a_batch_without_overlap(prepared_events: Path) -> None:
    data = EventData(prepared_events, InputSettings())
    whole = data.train_schedule(32, seed=0).batch(1)
    shares = [set(data.train_batch(whole[rank::3])["sample_id"]) for rank in range(3)]
    assert set.union(*shares) == set(data.train_batch(whole)["sample_id"])
    assert sum(map(len, shares)) == len(whole)


def test_validation_is_whole_and_always_the_same(prepared_events: Path) -> None:
    data = EventData(prepared_events, InputSettings())
    once, again = ([b["sample_id"] for b in map(data.validation_batch, data.validation_schedule(25))] for _ in range(2))
    assert once == again
    wanted = data.samples.filter(pl.col("split") == "validation")["sample_id"].to_list()
    assert sorted(itertools.chain.from_iterable(once)) == sorted(wanted)


def test_predicted_batches_hold_each_named_event_once(prepared_events: Path) -> None:
    data = EventData(prepared_events, InputSettings())
    ids = data.samples["sample_id"].sample(120, seed=1, shuffle=True).to_list()
    batches = data.predict_batches(ids, 16)
    found = [b["sample_id"] for b in batches]
    assert len(batches) == len(found)
    assert sorted(itertools.chain.from_iterable(found)) == sorted(ids)


def test_predicted_batches_have_shapes_of_the_length_alone(prepared_events: Path) -> None:
    data = EventData(prepared_events, InputSettings(token_budget=160))
    shapes: dict[int, set[int]] = {}
    for batch in data.predict_batches(data.samples["sample_id"].to_list(), 16):
        shapes.setdefault(batch["length"], set()).add(len(batch["module_counts"]))
        assert batch["length"] >= int(batch["module_counts"].max())
        assert batch["length"] * len(batch["module_counts"]) <= 160
    assert all(len(sizes) == 1 for sizes in shapes.values())
    assert len(shapes) > 2


def test_an_unknown_event_is_named(prepared_events: Path) -> None:
    with pytest.raises(DataError, match="sample 'nobody' is unknown"):
        EventData(prepared_events, InputSettings()).predict_batches(["nobody"], 4)


def test_what_is_cut_is_counted(prepared_events: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = EventData(prepared_events, InputSettings(max_doms=5, max_pulses=2, isolated="all"))
    logging.getLogger("manyscope").propagate = True
    with caplog.at_level(logging.INFO, logger="manyscope"):
        data.log_cuts()
    shard = data.shards[0]
    long = int((shard.n_modules > 5).sum())
    batch = data.batch(np.arange(len(data.samples)))
    assert f"sees {len(batch['modules'])} of {len(shard.sensor)} modules" in caplog.text
    assert f"max_doms 5 cuts {long} events" in caplog.text
    assert f"and {len(batch['pulses'])} of {len(shard.pulses)} pulses" in caplog.text


def test_what_the_flat_form_cuts_is_counted(prepared_events: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = EventData(prepared_events, InputSettings(isolated="all", max_doms=5160), forms.Form("flat", 2))
    logging.getLogger("manyscope").propagate = True
    with caplog.at_level(logging.INFO, logger="manyscope"):
        data.log_cuts()
    batch = data.batch(np.arange(len(data.samples)))
    shown = int(batch["flat"][..., 7::4].sum())  # the ones that say "there is a pulse"
    assert f"and {shown} of {len(data.shards[0].pulses)} pulses (at most 2 of a module)" in caplog.text


@pytest.mark.parametrize("pulses", [1, 3, 8])
def test_the_flat_form_is_what_a_loop_builds(prepared_events: Path, pulses: int) -> None:
    data = EventData(prepared_events, InputSettings(max_doms=12), forms.Form("flat", pulses))
    batch = data.batch(np.array([4, 250, 31]))
    flat, mask = batch["flat"].numpy(), batch["mask"].numpy()
    assert flat.shape == (3, batch["length"], 4 + 4 * pulses)
    assert mask.sum(1).tolist() == batch["module_counts"].tolist()
    assert not flat[~mask].any()
    starts = np.cumsum([0, *batch["pulse_counts"].tolist()])
    for module, vector in enumerate(flat[mask]):
        np.testing.assert_allclose(vector[:3], batch["sensors"][module, :3] / 500, rtol=1e-6)
        assert vector[3] == pytest.approx(np.log1p(float(batch["pulses_seen"][module])) / 3 - 1, abs=1e-6)
        own = batch["pulses"][starts[module] : starts[module + 1]][:pulses].numpy()
        expected = np.zeros((pulses, 4), np.float32)
        expected[: len(own), :3], expected[: len(own), 3] = own, 1
        np.testing.assert_array_equal(vector[4:].reshape(pulses, 4), expected)


def test_the_packed_form_places_each_pulse_once_beside_those_of_its_module(prepared_events: Path) -> None:
    data = EventData(prepared_events, InputSettings(), forms.Form("packed", 32))
    batch = data.batch(np.arange(40))
    place, segment = batch["place"].numpy(), batch["segment_of_slot"].numpy()
    assert len(set(place.tolist())) == len(batch["pulses"])
    of_pulse = np.repeat(np.arange(len(batch["modules"])), batch["pulse_counts"].numpy())
    np.testing.assert_array_equal(segment.ravel()[place], of_pulse)
    assert (segment >= 0).sum() == len(batch["pulses"])


def test_small_files_share_a_shard_and_several_shards_give_the_same_batches(
    prepared_events: Path, prepare_events: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = EventData(prepared_events, InputSettings())
    assert len(one.shards) == 1
    monkeypatch.setattr("manyscope.scopes.neutrinos.data.prepare._SHARD_EVENTS", 100)
    prepare_events(tmp_path)
    many = EventData(tmp_path, InputSettings())
    assert len(many.shards) == 3
    rows = np.array([299, 5, 105, 180, 7, 320])
    batch, other = one.batch(np.sort(rows)), many.batch(np.sort(rows))
    for name, value in batch.items():
        np.testing.assert_array_equal(np.asarray(other[name]), np.asarray(value), err_msg=name)


def test_an_event_of_180000_pulses_passes_in_bounded_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    detector, total = built_in_detector(), 180_000
    sizes = [50] * 40 + [total] + [50] * 40
    offsets = np.cumsum([0, *sizes])
    n = len(sizes)
    pulses = int(offsets[-1])
    time = np.concatenate([np.sort(rng.integers(8_000, 20_000, s)) for s in sizes]).astype(float)

    def read(tag: str) -> Events:
        return Events(
            [f"{tag}{i}" for i in range(n)], offsets, rng.integers(0, 5160, pulses).astype(np.int32), time,
            rng.uniform(0.1, 3, pulses).astype(np.float32), rng.random(pulses) < 0.3,
            rng.uniform(0, 6, n), rng.uniform(0, 3, n), pl.DataFrame(),
        )  # fmt: skip

    files = [EventFile(f"f{i}", i, True, detector, lambda i=i: read(f"{i}-")) for i in (1, 2, 3)]  # type: ignore[misc]
    settings = NeutrinosPreprocess(validation_batches=(2,), test_batches=(3,))
    write_table(tmp_path / "samples.parquet", prepare(files, settings, tmp_path))
    data = EventData(tmp_path, InputSettings(max_doms=2048, max_pulses=64, isolated="all", token_budget=4096))
    schedule = data.train_schedule(64, seed=0)
    tracemalloc.start()
    sizes_seen = []
    for step in range(schedule.batches_per_epoch):
        batch = data.train_batch(schedule.batch(step))
        sizes_seen.append(len(batch["pulses"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.lengths.max() == 2048
    assert max(sizes_seen) > 50_000, "the large event is there, and most of its pulses"
    assert peak < 60e6
