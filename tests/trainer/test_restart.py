"""When a worker counts as lost, and the wait before the next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.settings import RestartSettings
from service.trainer.restart import Health, Signs, diagnose, restart_delay_s

SETTINGS = RestartSettings(
    first_delay_s=0.5,
    max_delay_s=30,
    start_timeout_s=120,
    silent_after_s=15,
    stuck_after_s=300,
)


def health(
    now_s: float, *, ready: bool = True, heard_s: float = 0.0, moved_s: float = 0.0
) -> Health:
    return diagnose(Signs(0.0, ready, heard_s, moved_s), now_s, SETTINGS)


@pytest.mark.parametrize(("now_s", "expected"), [(120, Health.WELL), (120.1, Health.LATE)])
def test_a_worker_has_time_to_become_ready(now_s: float, expected: Health) -> None:
    assert health(now_s, ready=False) is expected


def test_heartbeats_do_not_excuse_one_that_never_becomes_ready() -> None:
    assert health(121, ready=False, heard_s=121, moved_s=121) is Health.LATE


@pytest.mark.parametrize(("now_s", "expected"), [(15, Health.WELL), (15.1, Health.SILENT)])
def test_a_ready_worker_must_be_heard(now_s: float, expected: Health) -> None:
    assert health(now_s) is expected


@pytest.mark.parametrize(("now_s", "expected"), [(300, Health.WELL), (300.1, Health.STUCK)])
def test_a_worker_that_is_heard_must_also_move(now_s: float, expected: Health) -> None:
    assert health(now_s, heard_s=now_s) is expected


def test_the_wait_doubles_from_the_first_to_the_longest() -> None:
    waits = [restart_delay_s(failures, SETTINGS) for failures in range(1, 9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]


@given(st.integers(0, 10**9))
def test_the_wait_is_bounded_for_any_number_of_failures(failures: int) -> None:
    assert 0.5 <= restart_delay_s(failures, SETTINGS) <= 30
