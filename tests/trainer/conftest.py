"""A slab, and a stream of events that stand in it."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from service.state.histories import HistorySlab
from tests.state.examples import a_slab
from tests.trainer.examples import Stream


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab(users=200, events=16)) as made:
        yield made


@pytest.fixture
def stream(slab: HistorySlab) -> Stream:
    return Stream(slab)
