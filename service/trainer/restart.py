"""When a worker counts as lost, and how long to wait before the next. Pure."""

import enum
from dataclasses import dataclass

from service.settings import RestartSettings


class Health(enum.StrEnum):
    WELL = "well"
    SILENT = "silent"  # its process does not run: stopped, swapped out, deadlocked
    STUCK = "stuck"  # its process runs, its work does not go on
    LATE = "late"  # it never became ready


@dataclass(frozen=True, slots=True)
class Signs:
    """What was last heard of a worker, in monotonic seconds."""

    spawned_s: float
    ready: bool
    heard_s: float  # any message
    moved_s: float  # a change of progress, or idle


def diagnose(signs: Signs, now_s: float, settings: RestartSettings) -> Health:
    if not signs.ready:
        late = now_s - signs.spawned_s > settings.start_timeout_s
        return Health.LATE if late else Health.WELL
    if now_s - signs.heard_s > settings.silent_after_s:
        return Health.SILENT
    if now_s - signs.moved_s > settings.stuck_after_s:
        return Health.STUCK
    return Health.WELL


def restart_delay_s(failures: int, settings: RestartSettings) -> float:
    """Seconds to wait after `failures` short lives in a row: doubling, bounded."""
    # 2 ** 30 first delays are past any bound; more would overflow a float.
    exponent = min(max(failures - 1, 0), 30)
    return min(settings.first_delay_s * 2.0**exponent, settings.max_delay_s)
