"""What the memory recalled for held-out events."""

import numpy as np
import pytest

from service.model.memory import Memory, Recollection
from service.settings import MemorySettings
from service.trainer.holdout import HoldoutRows
from service.trainer.recollections import Recollections
from tests.trainer.examples import keys, known


@pytest.fixture
def memory() -> Memory:
    """In which 2 follows 1."""
    memory = Memory(MemorySettings())
    learn(memory, 1)
    learn(memory, 2, 1)
    return memory


def learn(memory: Memory, item: int, *before: int) -> None:
    memory.learn(*known(item), keys(before))


def rows(*users: int) -> HoldoutRows:
    """After 1, of these users."""
    count = len(users)
    context = np.zeros((count, 4), np.int64)
    context[:, 0] = keys([1])
    user = np.array(users, np.int64)
    one = np.ones(count, np.int64)
    return HoldoutRows(
        context, np.zeros((count, 4, 0), np.int32), user, one, user, np.zeros(count, np.uint8)
    )


def recalled(found: list[Recollection]) -> list[set[int]]:
    return [set(one.key.tolist()) for one in found]


def items(*numbers: int) -> set[int]:
    return set(keys(list(numbers)).tolist())


def test_what_came_later_is_not_recalled(memory: Memory) -> None:
    kept = Recollections()
    kept.ask(memory, rows(7))
    learn(memory, 3, 1)
    found = kept.of(memory, rows(7, 8))  # 8 was not asked for then
    assert recalled(found) == [items(2), items(2, 3)]
    learn(memory, 4, 1)
    assert recalled(kept.of(memory, rows(7, 8))) == recalled(found)


def test_others_are_forgotten(memory: Memory) -> None:
    kept = Recollections()
    kept.ask(memory, rows(6, 7, 8))
    learn(memory, 3, 1)
    kept.forget_others(rows(6), rows(7))
    assert recalled(kept.of(memory, rows(6, 7, 8))) == [items(2), items(2), items(2, 3)]


def test_without_a_memory_there_is_nothing() -> None:
    kept = Recollections()
    kept.ask(None, rows(7))
    assert kept.of(None, rows(7)) == []
