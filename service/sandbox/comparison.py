"""The live model's answers beside those of the baselines, event by event."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch

from service.backtest.still import StillMemory
from service.domain import Bools, Int64s, Version
from service.registry.registry import Registry
from service.registry.servable import Servable, make_servable
from service.sandbox.baselines import FrozenModel, PopularFilms
from service.sandbox.replay import Answer, Ratings, Served
from service.sandbox.scoreboard import Recommender, Scoreboard
from service.settings import Settings

_AT_ONCE = 512  # events; some 0.2 s of one core
_POLL_S = 0.1
COMPARED = (Recommender.LIVE, Recommender.FROZEN, Recommender.POPULARITY)


def one_torch_thread() -> Executor:
    """Where models are taught and asked on this side. One thread: steps of this size gain nothing
    from a second one, and beside other work on the cores they lose tenfold."""
    return ThreadPoolExecutor(1, "baselines", lambda: torch.set_num_threads(1))


class Comparison:
    """Notes the live answers as they come in, and lets the baselines answer behind them."""

    def __init__(
        self, ratings: Ratings, first: int, registry: Registry, settings: Settings
    ) -> None:
        """The service answers from event `first` on."""
        self.board = Scoreboard(ratings.user, ratings.item, first)
        self.half = first + (len(ratings) - first) // 2
        self.served: dict[Version, Served] = {}
        self.rankings: dict[int, list[int]] = {}  # the newest live one by user
        self._ratings = ratings
        self._registry = registry
        self._settings = settings
        self._live_version = np.zeros(len(ratings), np.int64)  # by event; 0: not answered
        self.answered = first  # events; those before it are as good as answered
        self._without_gap = first  # the first so many events are all answered

    def note(self, answer: Answer) -> None:
        """One recommendation has arrived. Those that repeat one are ignored."""
        if self._live_version[answer.event]:
            return
        self._live_version[answer.event] = answer.version
        self.answered += 1
        ranking = [self._ratings.number[item] for item in answer.items]
        self.board.answered(Recommender.LIVE, answer.event, ranking)
        self.rankings[int(self._ratings.user[answer.event])] = ranking
        seen = self.served.get(answer.version)
        if seen is None or answer.generated_ms < seen.generated_ms:
            self.served[answer.version] = Served(
                answer.event, answer.generated_ms, answer.trained_through
            )

    def advance(self) -> int:
        """How many of the first events are answered without a gap."""
        rest = self._live_version[self._without_gap :] == 0
        self._without_gap += int(rest.argmax()) if rest.any() else len(rest)
        return self._without_gap

    async def all_answered(self, events: int) -> None:
        """Returns when so many events are answered."""
        while self.answered < events:  # noqa: ASYNC110  # recommendations arrive in bursts
            await asyncio.sleep(_POLL_S)

    async def ask_baselines(self, executor: Executor, start: Version) -> None:
        """Ask all baselines about every event, behind the live answers. Ends with the last."""
        loop = asyncio.get_running_loop()
        frozen = FrozenModel(*self._load(start), self._ratings, self._settings)
        halfway = FrozenModel(*self._load(start), self._ratings, self._settings)
        popular = PopularFilms(self._ratings, self._settings.scorer.popularity_half_life_events)
        try:
            done = 0
            while done < len(self._ratings):
                end = min(self.advance(), done + _AT_ONCE)
                if done < self.half:
                    end = min(end, self.half)
                if end == done:
                    await asyncio.sleep(_POLL_S)
                    continue
                if done == self.half:
                    version = Version(int(self._live_version[self.half]))
                    halfway.freeze(*await loop.run_in_executor(executor, self._load, version))
                chosen = np.arange(done, end)
                for who, answer in (
                    (Recommender.FROZEN, _asking(frozen, self.board.asked(chosen))),
                    (Recommender.POPULARITY, popular.answer),
                    (
                        Recommender.FROZEN_AT_HALF,
                        _asking(halfway, self.board.asked(chosen) & (chosen >= self.half)),
                    ),
                ):
                    rankings = await loop.run_in_executor(executor, answer, chosen)
                    for event, ranking in zip(chosen.tolist(), rankings, strict=True):
                        self.board.answered(who, event, ranking)
                done = end
        finally:
            frozen.close()
            halfway.close()

    def _load(self, version: Version) -> tuple[Servable, StillMemory]:
        """A version, and the memory that its trainer had."""
        manifest, artifact = self._registry.load(version, with_trainer=True)
        batch, length = self._settings.batch.score_max_events, self._settings.model.max_length
        servable = make_servable(manifest, artifact, batch=batch, length=length)
        memory = StillMemory(self._settings.memory)
        memory.load(artifact.trainer, servable.vocabulary)
        return servable, memory


def _asking(model: FrozenModel, wanted: Bools) -> Callable[[Int64s], list[list[int]]]:
    return lambda chosen: model.answer(chosen, wanted)
