"""The settings that a backtest runs with: the given ones, but for a few."""

from collections.abc import Sequence

import numpy as np

from service.backtest.options import Protocol
from service.backtest.scores import Plain
from service.backtest.table import Table
from service.settings import Settings
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


def with_seed(settings: Settings, seed: int) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"seed": seed})})
