"""One run of the demo: from the first event to the last answer.

The first fifth of the events makes the model and the histories that the service starts from;
the rest is replayed. Everything that is said about the service was read from its
recommendations topic, its registry and its /metrics, as an operator could.
"""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from service.domain import Version
from service.errors import DamagedVersionError, TransientError
from service.registry.registry import Registry
from service.sandbox.comparison import COMPARED, Comparison, one_torch_thread
from service.sandbox.demo_report import Results
from service.sandbox.movielens import ALL_EVENTS
from service.sandbox.replay import Pace, Ratings, Replay, event_to_weights_s, read_answer
from service.sandbox.scoreboard import Recommender, Scoreboard
from service.sandbox.serve_process import ServeFailedError, ServeProcess
from service.sandbox.view import SHAPE_POINTS, Status, View
from service.sandbox.warm_start import publish_first_version
from service.settings import Settings
from service.state.features import Features
from service.stream.client import EventProducer, RecommendationReader, commit_offsets
from service.stream.topics import create_topics

WINDOW = 5_000  # queries that a point of a curve is the mean of

# On two cores all of the demo then ends within four minutes, and the trainer keeps up.
_PACE = Pace(events_per_s=550.0, max_in_flight=1500)
_WARM_SHARE = 0.2

_READY_TIMEOUT_S = 120.0  # importing torch twice on a busy machine
_SILENCE_TIMEOUT_S = 60.0  # no answer for so long: something is stuck
_STOP_TIMEOUT_S = 45.0
_READ_S = 0.2
_LOOK_S = 0.5
_ASK_S = 2.0


@dataclass(slots=True)
class _Seen:
    """What the registry and /metrics have said so far."""

    newest: int = 0
    lines: tuple[str, ...] = ()
    verdicts: Mapping[str, int] | None = None


class Demo:
    """One run, from the first event to the last answer."""

    def __init__(
        self,
        ratings: Ratings,
        settings: Settings,
        serve: ServeProcess,
        console: Console,
        started_s: float,
    ) -> None:
        self._ratings = ratings
        self._settings = settings
        self._serve = serve
        self._started_s = started_s
        self._view = View(console, WINDOW)
        self._registry = Registry.of(settings)
        self._first = round(len(ratings) * _WARM_SHARE)
        self._comparison = Comparison(ratings, self._first, self._registry, settings)
        self._seen = _Seen()
        self._phase = "creating topics"
        self._rate = 0.0
        self._delays: tuple[float, float] | None = None  # event to weights, p50 and p95

    @property
    def board(self) -> Scoreboard:
        return self._comparison.board

    @property
    def half(self) -> int:
        return self._comparison.half

    async def run(self) -> Results:
        """Raises `HeadwaterError` where the service fails, alone or in a group."""
        settings = self._settings
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task and sys.platform != "win32":  # SIGINT does the same by itself
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
        await create_topics(settings.kafka, settings.topics)
        with self._view, one_torch_thread() as executor:
            async with (
                EventProducer(settings.kafka, settings.topics.events) as producer,
                RecommendationReader(settings.kafka, settings.topics.recommendations) as reader,
                self._beside(self._show()),
            ):
                replay = Replay(self._ratings, producer)
                await self._warm_start(replay, executor)
                self._phase = "starting the service"
                self._serve.start()
                await self._serve.ready(_READY_TIMEOUT_S)
                self._phase = "waiting for the trainer"
                await self._serve.trainer_up(_READY_TIMEOUT_S)
                async with self._beside(
                    self._serve.watch(), self._read(reader, replay), self._look(replay)
                ):
                    seconds = await self._stream(replay, executor)
                self._phase = "stopping the service"
                self._seen.verdicts = await self._serve.gate_decisions()
                await self._serve.stop(_STOP_TIMEOUT_S)
                await self._look_at_registry()
        return self._results(replay, seconds)

    @asynccontextmanager
    async def _beside(self, *coroutines: Any) -> AsyncIterator[None]:
        """Runs these while the body runs; a failure of either ends both."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
            yield
            for task in tasks:
                task.cancel()

    async def _warm_start(self, replay: Replay, executor: Executor) -> None:
        self._phase = "teaching the first fifth of the events"
        await replay.send_all(self._first)
        chosen = np.arange(self._first)
        settings = self._settings
        events = self._ratings.columns(
            chosen,
            replay.partition[: self._first],
            replay.offset[: self._first],
            Features(settings.model.context, settings.events.kinds),
        )
        manifest = await asyncio.get_running_loop().run_in_executor(
            executor, publish_first_version, events, self._settings, self._registry
        )
        # As if they had been answered in an earlier life: nobody waits for those answers now.
        topic = self._settings.topics.events
        await commit_offsets(self._settings.kafka, topic, manifest.trained_through)

    async def _stream(self, replay: Replay, executor: Executor) -> float:
        """Replay, and wait for all answers and all baselines; gives the replay's seconds."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._comparison.ask_baselines(executor, Version(1)))
            started_s = time.monotonic()
            self._phase = "replaying"
            await replay.send_at(_PACE)
            await self._comparison.all_answered(len(self._ratings))
            seconds = time.monotonic() - started_s
            self._phase = "asking the frozen models the last queries"
        return seconds

    async def _read(self, reader: RecommendationReader, replay: Replay) -> None:
        """Note every recommendation. Raises `ServeFailedError` when none come any more."""
        heard_s = time.monotonic()
        while True:
            records = await reader.read(_READ_S)
            for record in records:
                if record.value is not None:
                    self._comparison.note(read_answer(record.value))
            replay.answered = self._comparison.answered
            if records or replay.answered == replay.sent:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _SILENCE_TIMEOUT_S:
                waiting = replay.sent - replay.answered
                raise ServeFailedError(
                    f"{waiting:,} events were not answered within {_SILENCE_TIMEOUT_S:.0f} s"
                )

    async def _look(self, replay: Replay) -> None:
        """Ask the registry, /metrics and the clock now and then."""
        before, before_s = self._comparison.answered, time.monotonic()
        while True:
            await asyncio.sleep(_ASK_S)
            self._seen.verdicts = await self._serve.gate_decisions() or self._seen.verdicts
            await self._look_at_registry()
            now_s = time.monotonic()
            self._rate = (self._comparison.answered - before) / (now_s - before_s)
            before, before_s = self._comparison.answered, now_s
            self._delays = self._event_to_weights(replay)

    async def _look_at_registry(self) -> None:
        versions = await asyncio.to_thread(self._registry.versions)
        lines = []
        for version in versions[:-6:-1]:
            try:
                manifest = await asyncio.to_thread(self._registry.manifest, version)
            except (DamagedVersionError, TransientError):
                continue  # pruned meanwhile, say
            gain = f", {manifest.gate.mean_gain:+.4f} on the holdout" if manifest.gate else ""
            lines.append(f"version {version}: {manifest.items:,} films{gain}")
        self._seen.lines = tuple(lines)
        self._seen.newest = max(versions, default=0)

    def _event_to_weights(self, replay: Replay) -> tuple[float, float] | None:
        """p50 and p95 over the replayed events of which a version has answered."""
        known = slice(self._first, replay.sent)
        seconds = event_to_weights_s(
            replay.sent_ms[known],
            replay.partition[known],
            replay.offset[known],
            self._comparison.served.values(),
        )
        seconds = seconds[np.isfinite(seconds)]
        if not len(seconds):
            return None
        p50, p95 = np.percentile(seconds, [50, 95])
        return float(p50), float(p95)

    async def _show(self) -> None:
        while True:
            self._view.show(self._status())
            await asyncio.sleep(_LOOK_S)

    def _status(self) -> Status:
        board, served = self.board, self._comparison.served
        settled = board.settled(COMPARED)
        return Status(
            phase=self._phase,
            done=self._comparison.answered,
            total=len(self._ratings),
            events_per_s=self._rate,
            elapsed_s=time.monotonic() - self._started_s,
            queries=settled,
            window={
                who: board.score(who, slice(max(settled - WINDOW, 0), settled)) for who in COMPARED
            },
            so_far={who: board.score(who, slice(0, settled)) for who in COMPARED},
            shape=board.curve(dict.fromkeys(COMPARED, 0), WINDOW, SHAPE_POINTS).ndcg_at_10,
            serving=max(served, default=None),
            versions=self._seen.lines,
            verdicts=self._seen.verdicts or {},
            event_to_weights_s=self._delays,
        )

    def _results(self, replay: Replay, seconds: float) -> Results:
        board = self.board
        last_half = slice(board.since(self.half), None)
        versions = sorted(self._comparison.served.items())
        return Results(
            events=len(self._ratings),
            replayed=len(self._ratings) - self._first,
            seconds=time.monotonic() - self._started_s,
            replay_seconds=seconds,
            second_half={who: board.score(who, last_half) for who in Recommender},
            whole={who: board.score(who, slice(None)) for who in COMPARED},
            published=self._seen.newest - 1,  # the first one is ours
            served=len(versions),
            rejected=(self._seen.verdicts or {}).get("reject", 0),
            event_to_weights_s=self._event_to_weights(replay),
            published_at=[served.event for version, served in versions if version > 1],
            is_whole=len(self._ratings) == ALL_EVENTS,
            examples=_examples(self._ratings, self._comparison.rankings),
        )


def _examples(
    ratings: Ratings, rankings: Mapping[int, list[int]]
) -> list[tuple[str, list[str], list[str]]]:
    """The last users of the stream: id, their last three films, and the top five for them."""
    users = list(dict.fromkeys(ratings.user[::-1].tolist()))[:4]
    names = [ratings.titles[item] for item in ratings.item_ids]
    return [
        (
            ratings.user_ids[user],
            [names[item] for item in ratings.item[ratings.user == user][-3:].tolist()],
            [names[item] for item in rankings[user][:5]],
        )
        for user in users
        if user in rankings
    ]
