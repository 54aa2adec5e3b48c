"""The settings that a backtest runs with: the given ones, but for a few."""

from collections.abc import Sequence

import numpy as np

from service.backtest.options import Protocol, TimeUnit
from service.backtest.scores import Plain
from service.backtest.table import Table
from service.errors import ConfigurationError
from service.settings import (
    CategoryFeature,
    NumberFeature,
    Settings,
)
from service.trainer.gate import require_decisions


class Override(Plain):
    """A setting that differs from what was given."""

    name: str
    given: bool | int
    used: bool | int
    why: str


def prepared(
    settings: Settings, tables: Sequence[Table], protocol: Protocol
) -> tuple[Settings, list[Override]]:
    """The settings that fit these events, and what was changed. Raises ConfigurationError where
    nothing that is learned would ever serve."""
    require_decisions(settings)
    user = np.concatenate([table.user for table in tables])
    _, counts = np.unique(user, return_counts=True)
    users, most = max(len(counts), 1), int(counts.max(initial=0))
    given = settings.history
    continual = protocol is Protocol.CONTINUAL
    # Who sets a bound wants it, and in the continual protocol only replay would notice.
    bounded = continual and "users" in given.model_fields_set
    history = given.model_copy(
        update={
            "users": min(users, given.users) if bounded else users,
            "events": max(min(given.events, most), settings.model.max_length),
        }
    )
    scorer = settings.scorer
    if continual:
        scorer = scorer.model_copy(update={"exclude_seen": False})
    new = settings.model_copy(update={"history": history, "scorer": scorer})
    everyone = "one place for each user of the files: none is forgotten, no memory is left unused"
    changed = [
        Override(
            name="history.users",
            given=given.users,
            used=history.users,
            why="bounded by the settings" if bounded else everyone,
        ),
        Override(
            name="history.events",
            given=given.events,
            used=history.events,
            why="no user has more, so less shared memory holds the same",
        ),
        Override(
            name="scorer.exclude_seen",
            given=settings.scorer.exclude_seen,
            used=scorer.exclude_seen,
            why="the continual protocol ranks all items, those of the session too",
        ),
    ]
    return new, [one for one in changed if one.given != one.used]


def require_queries(are_there: bool, settings: Settings) -> None:
    """Raises ConfigurationError where nothing would be ranked, for all that is learned."""
    if not are_there:
        kinds = ", ".join(settings.events.answered) or "none"
        raise ConfigurationError(
            "no event is a query: none that is counted is of a kind that is answered "
            f"({kinds}), of a user with events before it, and in the "
            "continual protocol for an item of an earlier period; --event names the column of kinds"
        )


def require_times(settings: Settings, timed: Sequence[bool], unit: TimeUnit | None) -> None:
    """Raises ConfigurationError where something goes by the times of events that have none, of the
    files that are `timed` or not."""
    if all(timed):
        return
    if any(timed):
        raise ConfigurationError("some files have times and others do not: give all or none")
    features = [one.kind for one in settings.model.context]
    by_time = {
        "--time-unit": unit is not None,
        "model.context (hour, gap)": not {"hour", "gap"}.isdisjoint(features),
        "click.followed_by": settings.click.enabled and bool(settings.click.followed_by),
        "trainer.replay.half_life_s": settings.trainer.replay.half_life_s is not None,
        "items.expire_after_s": settings.items.expire_after_s is not None,
    }
    named = [name for name, goes_by_time in by_time.items() if goes_by_time]
    if named:
        raise ConfigurationError(
            f"the events have no times, and {', '.join(named)} cannot do without: --time names "
            "their column"
        )


def without_effect(settings: Settings, tables: Sequence[Table], *, knows_items: bool) -> list[str]:
    """What the settings ask for and the files have nothing of, in sentences."""
    told = []
    if not knows_items and (settings.items.text.encoder or settings.items.vectors):
        told.append(
            "items.text and items.vectors have nothing to read: --items names what is known of "
            "the items."
        )
    absent = [
        one.name
        for place, one in enumerate(settings.model.context)
        if isinstance(one, CategoryFeature | NumberFeature)
        and not any(table.codes[:, place].any() for table in tables)
    ]
    if absent:
        told.append(f"No event has what model.context reads: {', '.join(absent)}.")
    return told


def with_seed(settings: Settings, seed: int) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"seed": seed})})
