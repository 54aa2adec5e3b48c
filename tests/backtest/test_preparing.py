from service.backtest.options import Protocol
from service.backtest.preparing import prepared, with_seed
from service.settings import HistorySettings, Settings
from tests.backtest.examples import periods, quick_settings, walks


def test_nobody_is_forgotten_and_no_more_memory_is_taken_than_needed() -> None:
    table = walks(400, users=300)
    settings = quick_settings()
    used, changed = prepared(settings, [table], Protocol.PREQUENTIAL)
    assert used.history.users == len(set(table.user_ids)) > settings.history.users
    assert used.history.events == settings.model.max_length  # no user has more
    assert {one.name for one in changed} == {"history.users", "history.events"}
    assert used.scorer == settings.scorer


def test_a_history_is_not_longer_than_the_settings_say() -> None:
    used, _ = prepared(quick_settings(), [walks(400)], Protocol.PREQUENTIAL)
    assert used.history.events == quick_settings().history.events


def test_the_continual_protocol_filters_nothing() -> None:
    used, changed = prepared(quick_settings(), periods(2), Protocol.CONTINUAL)
    assert not used.scorer.exclude_seen
    assert "scorer.exclude_seen" in {one.name for one in changed}


def test_a_bound_that_was_set_holds_where_only_replay_would_notice() -> None:
    settings = Settings(history=HistorySettings(users=7))
    assert prepared(settings, periods(2), Protocol.CONTINUAL)[0].history.users == 7
    assert prepared(settings, periods(2), Protocol.PREQUENTIAL)[0].history.users == 60


def test_a_seed_is_a_setting_of_the_model() -> None:
    assert with_seed(quick_settings(), 7).model.seed == 7
