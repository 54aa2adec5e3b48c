"""How long and how often things are measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    runs: int
    backlog_events: int
    latency_s: float
    weights_s: float
    swaps: int
    swap_phases: int  # each is followed by a shorter one without swaps
    profile_batches: int
    steps: int  # of each catalogue
    trained_events: int
    click_events: int  # of a case at most
    snapshot_users: int  # with 50 events each
    snapshots: int  # under load
    soak_events: int
    slow_events: int


FULL = Scale(
    runs=3,
    backlog_events=10_000,
    latency_s=6.0,
    weights_s=20.0,
    swaps=1000,
    swap_phases=10,
    profile_batches=60,
    steps=30,
    trained_events=8_000,
    click_events=20_000,
    snapshot_users=1_000_000,
    snapshots=3,
    soak_events=5_000_000,
    slow_events=300_000,
)
QUICK = Scale(
    runs=1,
    backlog_events=5_000,
    latency_s=3.0,
    weights_s=8.0,
    swaps=60,
    swap_phases=3,
    profile_batches=15,
    steps=5,
    trained_events=1_500,
    click_events=4_000,
    snapshot_users=20_000,
    snapshots=2,
    soak_events=30_000,
    slow_events=15_000,
)
