"""Which settings are searched, between which bounds, and why these.

They are few on purpose: every further one makes a search of some dozen trials blinder. Left
out is what trades quality for time or memory (lengths, widths, windows) and what guards (the
gate, the limits): a better figure in a backtest does not tell what these are for.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import BaseModel

from service.settings import PretrainedBackbone, Settings, SmallBackbone

Value = int | float
Values = dict[str, Value]  # by dotted names
S = TypeVar("S", bound=BaseModel)


class Scale(enum.Enum):
    LINEAR = enum.auto()
    LOG = enum.auto()  # as likely between 1 and 2 as between 2 and 4
    WHOLE = enum.auto()  # whole numbers


@dataclass(frozen=True, slots=True)
class Searched:
    """A setting and where to look for it."""

    name: str  # dotted
    low: Value
    high: Value
    scale: Scale
    why: str
    applies: Callable[[Settings], bool] = lambda _: True


def _has_memory(settings: Settings) -> bool:
    return settings.memory.enabled


def _is_small(settings: Settings) -> bool:
    return isinstance(settings.model.backbone, SmallBackbone)


def _may_drop(settings: Settings) -> bool:
    """Not where a pretrained backbone was left to drop what it always did."""
    model = settings.model
    return model.dropout is not None or not isinstance(model.backbone, PretrainedBackbone)


def _goes_back(settings: Settings) -> bool:
    return settings.memory.enabled and not settings.scorer.exclude_seen


SPACE = (
    Searched(
        "trainer.learning_rate", 3e-4, 3e-2, Scale.LOG,
        "how far a micro-batch moves the weights: too little learns late, too much forgets",
    ),
    Searched(
        "trainer.item_learning_rate", 1e-3, 1e-1, Scale.LOG,
        "the same for item vectors, of which each is in few steps; the sparser the catalogue is "
        "met, the higher",
    ),
    Searched(
        "model.temperature", 0.03, 0.4, Scale.LOG,
        "how sharply the best items are told from the next; goes with the size of the catalogue",
    ),
    Searched(
        "model.dropout", 0.0, 0.5, Scale.LINEAR,
        "against learning few histories by heart; plenty of events need little of it",
        _may_drop,
    ),
    Searched(
        "trainer.replay.ratio", 0.0, 8.0, Scale.LINEAR,
        "old events beside new ones: a stream that changes quickly wants less",
    ),
    Searched(
        "trainer.max_epochs", 1, 4, Scale.WHOLE,
        "how much is taken out of a micro-batch; early stopping bounds it from above",
    ),
    Searched(
        "memory.lag_decay", 0.4, 1.0, Scale.LINEAR,
        "whether only the next item counts as led to, as in sessions, or later ones too",
        _has_memory,
    ),
    Searched(
        "memory.step_decay", 0.4, 1.0, Scale.LINEAR,
        "whether the last event alone tells what is wanted, or the whole history",
        _has_memory,
    ),
    Searched(
        "memory.repeat", 0.0, 30.0, Scale.LINEAR,
        "how often users go back to what they had; only where that may be recommended",
        _goes_back,
    ),
    Searched(
        "model.backbone.layers", 1, 3, Scale.WHOLE,
        "long histories may need a second look at themselves; each layer costs scoring time",
        _is_small,
    ),
)  # fmt: skip


def space_for(settings: Settings, fixed: frozenset[str]) -> list[Searched]:
    """What is searched for these settings, the given value always within its bounds."""
    found = []
    for one in SPACE:
        if one.name not in fixed and one.applies(settings):
            given = value_of(settings, one.name)
            found.append(replace(one, low=min(one.low, given), high=max(one.high, given)))
    return found


def given_values(space: Sequence[Searched], settings: Settings) -> Values:
    return {one.name: value_of(settings, one.name) for one in space}


def value_of(settings: Settings, name: str) -> Value:
    if name == "model.dropout":  # which may be unset
        return settings.model.own_dropout
    section: BaseModel = settings
    *path, last = name.split(".")
    for key in path:
        section = getattr(section, key)
    value: Value = getattr(section, last)
    return value


def with_values(settings: Settings, values: Values) -> Settings:
    """The settings with these values, which are taken as valid."""
    for name, value in values.items():
        settings = _with_value(settings, name.split("."), value)
    return settings


def _with_value(section: S, path: Sequence[str], value: Value) -> S:
    key, *rest = path
    inner = _with_value(getattr(section, key), rest, value) if rest else value
    return section.model_copy(update={key: inner})


def written(one: Searched, value: float, given: Value) -> Value:
    """A drawn value as it is used and written: of three digits, so that files stay readable."""
    if value == given or one.scale is Scale.WHOLE:
        return type(given)(value)
    return min(max(float(f"{value:.3g}"), one.low), one.high)
