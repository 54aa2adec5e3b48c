"""What one run with one seed found, as plain data that can be kept and read again."""

from service.backtest.clicks import ClickFigures
from service.backtest.engine import Decision
from service.backtest.scores import Plain, Result


class Part(Plain):
    """A block of the stream, or a period."""

    name: str
    events: tuple[int, int]  # first and last of the stream, counted from 1
    queries: int
    models: dict[str, Result]
    learn_seconds: float  # wall clock: all that ranks and learns the stream
    test_seconds: float  # wall clock: queries that are ranked apart from the stream


class GateDecision(Plain):
    """What the gate said after so many events."""

    events: int
    verdict: str
    rows: int
    champion: float  # mean NDCG@10 on the rolling holdout
    challenger: float | None  # as the next two, None where it is not finite
    mean_gain: float | None
    margin: float | None


class SeedResult(Plain):
    """A whole run."""

    seed: int
    queries: int
    models: dict[str, Result]
    parts: list[Part]
    decisions: list[GateDecision]
    seconds: float  # wall clock
    train_seconds_before: dict[str, float]  # by model, before anything was counted
    clicks: dict[str, ClickFigures]  # where a click head is trained; by whose expectation


def plain_decision(decision: Decision) -> GateDecision:
    report = decision.report
    return GateDecision(
        events=decision.events,
        verdict=report.verdict.value,
        rows=report.rows,
        champion=report.champion,
        challenger=_finite(report.challenger),
        mean_gain=_finite(report.mean_gain),
        margin=_finite(report.margin),
    )


def _finite(number: float) -> float | None:
    return number if abs(number) < float("inf") else None
