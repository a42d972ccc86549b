"""What a neutrino event costs: to simulate, to prepare, to load in each form, to train on and to predict."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import WORK, Row, side_by_side
from manyscope.scopes.neutrinos.data import forms
from manyscope.scopes.neutrinos.data.loading import EventData
from manyscope.scopes.neutrinos.model.transformer import Transformer
from manyscope.scopes.neutrinos.scope import Neutrinos
from manyscope.scopes.neutrinos.settings import (
    InputSettings,
    NeutrinosDownload,
    NeutrinosPreprocess,
    NeutrinosSettings,
    SimulatedSettings,
)
from manyscope.tables.manifest import describe
from manyscope.tables.parquet import write_table
from manyscope.tables.samples import check_samples
from manyscope.training.memory import keep_freed_memory

_EVENTS, _FILES, _BATCH, _TIMES = 20_000, 10, 256, 5
_PULSES, _MODULES = 41, 128
_LOOP = "a loop over events with torch.unique"
_PADDED = f"the same network on (batch, {_MODULES}) padded tokens"
_UNIT = "CPU µs / event"


def run() -> list[Row]:
    torch.set_num_threads(1)
    keep_freed_memory()
    scope, settings = Neutrinos(), _settings()
    raw, prepared = WORK / "neutrinos" / "raw", WORK / "neutrinos" / "prepared"
    simulated = _seconds(lambda: _download(scope, settings, raw))
    converted = _seconds(lambda: _prepare(scope, settings, raw, prepared))
    rows = [
        Row("simulate", simulated / _EVENTS * 1e6, None, None, _UNIT),
        Row("preprocess, with validation", converted / _EVENTS * 1e6, None, None, _UNIT),
    ]
    return [*rows, *_loading(prepared), *_training(prepared)]


def _settings() -> NeutrinosSettings:
    simulated = SimulatedSettings(events=_EVENTS, events_per_file=_EVENTS // _FILES)
    return NeutrinosSettings(
        scope="neutrinos",
        download=NeutrinosDownload(simulated=simulated),
        preprocess=NeutrinosPreprocess(validation_batches=(1,), test_batches=(2,)),
    )


def _download(scope: Neutrinos, settings: NeutrinosSettings, raw: Path) -> None:
    if raw.exists():
        for file in [*raw.rglob("*.parquet")]:
            file.unlink()
    raw.mkdir(parents=True, exist_ok=True)
    write_table(raw / "manifest.parquet", describe(raw, scope.download(settings, raw)))


def _prepare(scope: Neutrinos, settings: NeutrinosSettings, raw: Path, prepared: Path) -> None:
    import shutil

    from manyscope.tables.manifest import read_manifest

    shutil.rmtree(prepared, ignore_errors=True)
    prepared.mkdir(parents=True)
    samples = scope.preprocess(settings, raw, read_manifest(raw / "manifest.parquet"), prepared)
    write_table(prepared / "samples.parquet", check_samples(samples, prepared))


# ---------------------------------------------------------------------------------------------------- loading
def _loading(prepared: Path) -> list[Row]:
    everything = InputSettings(max_doms=_MODULES, max_pulses=_PULSES, isolated="all")
    order = np.random.default_rng(0).permutation(_EVENTS)
    batches = [order[i : i + _BATCH] for i in range(0, 40 * _BATCH, _BATCH)]
    events = len(batches) * _BATCH
    flat = EventData(prepared, everything, forms.Form("flat", _PULSES))
    uncut = everything.model_copy(update={"max_doms": 5160, "max_pulses": 100_000})
    ragged, beside = EventData(prepared, uncut), EventData(prepared, uncut, forms.Form("ragged", beside=True))
    loop = _Loop(flat)
    _same_tensors(flat, loop, batches[0])
    taken = side_by_side(
        _TIMES,
        flat=lambda: _seconds(lambda: [flat.batch(rows, _MODULES) for rows in batches]),
        loop=lambda: _seconds(lambda: [loop.batch(rows) for rows in batches]),
        ragged=lambda: _seconds(lambda: [ragged.batch(rows) for rows in batches]),
        beside=lambda: _seconds(lambda: [beside.batch(rows) for rows in batches]),
    )
    cost = {name: seconds / events * 1e6 for name, seconds in taken.items()}
    return [
        Row(f"flat batches, K = {_PULSES}", cost["flat"], cost["loop"], _LOOP, _UNIT),
        Row("ragged batches, every module and pulse", cost["ragged"], None, None, _UNIT),
        Row("ragged batches, the modules beside each too", cost["beside"], None, None, _UNIT),
    ]


class _Loop:
    """The flat form as one would write it event by event: pulses grouped with `torch.unique`, no work repeated.

    Pulses and offsets are held as tensors, as a data set would hold its decoded file; they are normalised already.
    """

    def __init__(self, data: EventData) -> None:
        (shard,) = data.shards
        of_module = np.repeat(np.arange(len(shard.sensor)), np.diff(shard.pulse_offsets))
        self.offsets = shard.pulse_offsets[shard.module_offsets].tolist()
        self.rank = torch.from_numpy(of_module.astype(np.int64))  # modules numbered in their order
        self.sensor = torch.from_numpy(shard.sensor.astype(np.int64))
        self.pulses = torch.from_numpy(np.array(shard.pulses))
        self.position = torch.from_numpy(data.sensors[:, :3].copy()) / 500

    def batch(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        flat = torch.zeros(len(rows), _MODULES, 4 + 4 * _PULSES)
        mask = torch.zeros(len(rows), _MODULES, dtype=torch.bool)
        for i, row in enumerate(rows.tolist()):
            first, last = self.offsets[row], self.offsets[row + 1]
            modules, inverse, counts = torch.unique(self.rank[first:last], return_inverse=True, return_counts=True)
            starts = counts.cumsum(0) - counts
            within = torch.arange(last - first) - starts[inverse]  # pulses lie module by module
            n = min(len(modules), _MODULES)
            kept = (within < _PULSES) & (inverse < n)
            flat[i, :n, :3] = self.position[self.sensor[modules[:n]]]
            flat[i, :n, 3] = torch.log1p(counts[:n].float()) / 3 - 1
            slots = flat[i, :, 4:].view(_MODULES, _PULSES, 4)
            slots[inverse[kept], within[kept], :3] = self.pulses[first:last][kept]
            slots[inverse[kept], within[kept], 3] = 1
            mask[i, :n] = True
        return flat, mask


def _same_tensors(data: EventData, loop: _Loop, rows: np.ndarray) -> None:
    ours = data.batch(np.sort(rows), _MODULES)
    flat, mask = loop.batch(np.sort(rows))
    if not (torch.equal(ours["mask"], mask) and torch.allclose(ours["flat"], flat, atol=1e-6)):
        raise RuntimeError("the two ways do not build the same tensor")


# --------------------------------------------------------------------------------------------------- training
def _training(prepared: Path) -> list[Row]:
    everything = InputSettings(max_doms=_MODULES, isolated="all", token_budget=_BATCH * _MODULES)
    data = EventData(prepared, everything, Transformer.input_form())
    by_length = data.train_schedule(_BATCH, 0)
    count = 16
    rng = np.random.default_rng(0)
    steps = rng.choice(by_length.batches_per_epoch, count, replace=False)
    buckets = [data.train_rows[by_length.batch(int(step))] for step in steps]
    rows = rng.permutation(np.concatenate(buckets))  # the same events, as they come
    padded = np.array_split(rows, len(rows) // _BATCH)
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def train(batches: list[np.ndarray], length: int | None) -> None:
        model.train()
        for some in batches:
            loss = model.losses(data.batch(some, length))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    @torch.inference_mode()
    def predict() -> None:
        model.eval()
        for batch in default.predict_batches(ids, _BATCH):
            model(batch)

    default = EventData(prepared, InputSettings(), Transformer.input_form())
    ids = default.samples["sample_id"].head(4000).to_list()
    usual = default.train_schedule(128, 0)
    usual_rows = [default.train_rows[usual.batch(int(step))] for step in range(30)]

    def train_usual() -> None:
        model.train()
        for some in usual_rows:
            loss = model.losses(default.batch(some))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    taken = side_by_side(
        _TIMES,
        ours=lambda: _seconds(lambda: train(buckets, None)),
        padded=lambda: _seconds(lambda: train(padded, _MODULES)),
        usual=lambda: _seconds(train_usual),
        infer=lambda: _seconds(predict),
    )
    per_event = 1e6 / len(rows)
    return [
        Row("train, length buckets", taken["ours"] * per_event, taken["padded"] * per_event, _PADDED, _UNIT),
        Row("train, default input", taken["usual"] / sum(map(len, usual_rows)) * 1e6, None, None, _UNIT),
        Row("infer, default input", taken["infer"] / len(ids) * 1e6, None, None, _UNIT),
    ]


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start
