"""What reaches the worker and is learned, in which order."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from service.domain import Erasure, MicroBatch, Offset, UserId
from service.state.histories import HistorySlab
from service.trainer.worker import Inbox, _after
from tests.state.examples import a_slab
from tests.trainer.examples import PARTITION, Stream
from tests.trainer.test_learner import a_learner


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab(users=200, events=16)) as made:
        yield made


@pytest.fixture
def stream(slab: HistorySlab) -> Stream:
    return Stream(slab)


def erasing(batch: MicroBatch, user: int) -> MicroBatch:
    """The same with an erasure as the last thing in it."""
    end = batch.next_offsets[PARTITION]
    erasure = Erasure(PARTITION, end, UserId(f"user-{user}"))
    return replace(
        batch.without([erasure]), erasures=(erasure,), next_offsets={PARTITION: Offset(end + 1)}
    )


def test_what_waits_is_not_learned_once_its_erasure_has_come(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda _: ended.set())  # as it would when the parent is gone
    ours, theirs = multiprocessing.Pipe()
    inbox = Inbox(theirs)
    first = stream.batch([1, 2, 1], [1, 2, 3])
    ours.send(first)
    ours.send(erasing(stream.batch([2, 1], [4, 5]), 1))
    stream.events += 1  # where the erasure stands
    ours.send(stream.batch([1], [6]))
    ours.close()
    assert ended.wait(30)
    taken = inbox.take(100, 1)
    assert [batch.offset.tolist() for batch in taken] == [[1], [3], [6]]


def test_an_erasure_that_the_version_has_is_not_applied_again(
    slab: HistorySlab, stream: Stream
) -> None:
    learner = a_learner(slab)
    batch = erasing(stream.batch([1, 2], [1, 2]), 1)
    assert _after(batch, learner) is batch
    learner.trained_through[PARTITION] = Offset(2)
    assert _after(batch, learner).erasures == batch.erasures
    learner.trained_through[PARTITION] = Offset(3)
    assert _after(batch, learner).erasures == ()
