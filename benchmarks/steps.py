"""One training step, beside what it is to be flat in: the size of the catalogue."""

import json
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from benchmarks.rows import Row, make_row
from benchmarks.scale import Scale
from service.domain import ItemId, ItemKey, item_key
from service.settings import ModelSettings, TrainerSettings
from service.trainer.challenger import Challenger
from service.trainer.packing import Packed, pack
from service.trainer.step import train_step

_CATALOGUES = (1_000, 10_000, 100_000, 1_000_000)
# A step at the default settings: new sequences, and four times as many that are replayed.
_SEQUENCES = 64 * 5
# Fewer than the smallest catalogue has, so that each step draws as many.
_NEGATIVES = 512
_WARM_STEPS = 5
_MIB = 2**20


def step_rows(scale: Scale) -> list[Row]:
    """Time and memory of a step, and time of a round that is undone, for each catalogue, against
    the smallest one's."""
    settings = TrainerSettings(negatives=_NEGATIVES)
    cpu = torch.device("cpu")
    challengers = {
        items: a_challenger(ModelSettings(), settings, items, cpu) for items in _CATALOGUES
    }
    batch = {items: a_batch(challenger, items) for items, challenger in challengers.items()}
    for items, challenger in challengers.items():
        timed_steps(challenger, batch[items], settings, _WARM_STEPS)
    seconds: dict[int, list[float]] = {items: [] for items in _CATALOGUES}
    undone: dict[int, list[float]] = {items: [] for items in _CATALOGUES}
    memory: dict[int, list[float]] = {items: [] for items in _CATALOGUES}
    for _ in range(scale.steps):  # in turns, so that a busy machine slows all alike
        for items, challenger in challengers.items():
            seconds[items] += timed_steps(challenger, batch[items], settings, 1)
            undone[items].append(_timed_undo(challenger, batch[items], settings))
    for items, challenger in challengers.items():
        memory[items] = [_peak_mib(challenger, batch[items], settings) for _ in range(3)]
    least = _CATALOGUES[0]
    measured = (("step", "ms", seconds), ("undone", "ms", undone), ("step_memory", "MiB", memory))
    return [
        make_row(f"{name}_{items}_items", values[items], unit, f"{least} items", values[least])
        for name, unit, values in measured
        for items in _CATALOGUES
    ]


def timed_steps(
    challenger: Challenger, batch: Packed, settings: TrainerSettings, steps: int
) -> list[float]:
    """Milliseconds of each of some steps on the same batch."""
    found = []
    for _ in range(steps):
        started_s = time.perf_counter()
        train_step(challenger, batch, temperature=0.1, settings=settings)
        if batch.item.is_cuda:
            torch.cuda.synchronize()
        found.append((time.perf_counter() - started_s) * 1000)
    return found


def _timed_undo(challenger: Challenger, batch: Packed, settings: TrainerSettings) -> float:
    """Milliseconds of a round of one step that is undone."""
    started_s = time.perf_counter()
    before = challenger.savepoint()
    train_step(challenger, batch, temperature=0.1, settings=settings)
    challenger.is_finite(before)
    challenger.undo(before)
    challenger.release(before)
    taken_ms = (time.perf_counter() - started_s) * 1000
    _ = challenger.taught  # looked up again, once for each round that is undone
    return taken_ms


def a_batch(challenger: Challenger, items: int, length: int = 50) -> Packed:
    """Sessions of two to nine events anywhere in a catalogue; the same for the same size."""
    random = np.random.default_rng(0)
    rows = random.integers(1, items + 1, (_SEQUENCES, length + 1))
    lengths = random.integers(2, 10, _SEQUENCES)
    rows[np.arange(length + 1) >= lengths[:, None]] = 0
    together = challenger.model.backbone.packs
    return pack(rows, rows != 0, length, challenger.model.device, together=together)


def a_challenger(
    model: ModelSettings, trainer: TrainerSettings, items: int, device: torch.device
) -> Challenger:
    """One that has met a catalogue, as if in some step, and has learned nothing of it."""
    challenger = Challenger.new(model, trainer, device)
    challenger.learn_items(catalogue(items))
    challenger.item_optimizer.steps[1 : items + 1] = 1.0
    return challenger


def catalogue(items: int) -> list[tuple[ItemKey, ItemId]]:
    names = [ItemId(f"item-{number}") for number in range(items)]
    return [(item_key(name), name) for name in names]


def _peak_mib(challenger: Challenger, batch: Packed, settings: TrainerSettings) -> float:
    """The most that a step holds beyond what was there before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        train_step(challenger, batch, temperature=0.1, settings=settings)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"
    )
    return _highest([change for _, change in changes]) / _MIB


def _highest(changes: Sequence[int]) -> int:
    return max(accumulate(changes), default=0)
