"""Curves as TensorBoard itself reads them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Curves = dict[str, list[tuple[int, float]]]


def runs(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def curves(run: Path) -> Curves:
    """Of each name the steps and values."""
    found = EventAccumulator(str(run))
    found.Reload()
    return {
        name: [(point.step, point.value) for point in found.Scalars(name)]
        for name in found.Tags()["scalars"]
    }
