"""What time it is by the events.

A stream that is replayed ages as it did live. No event moves the time past our own clock: one
user's that is fast must not end the waiting of all others, nor let items expire.
"""

import time

import numpy as np

from service.domain import Int64s


def latest_past(time_ms: Int64s) -> int:
    """The latest of these times that our clock has reached, in epoch ms; 0 without any."""
    return int(np.minimum(time_ms, time.time_ns() // 1_000_000).max(initial=0))
