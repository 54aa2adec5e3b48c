"""Whatever parent and worker say to each other survives the pipe."""

import math
import pickle

import numpy as np
import pytest

from service.domain import ItemId, MicroBatch, Offset, Partition, Version, item_key
from service.settings import HistorySettings, Settings
from service.state.histories import HistorySlab
from service.trainer.gate import GateReport, Verdict
from service.trainer.messages import (
    FromWorker,
    Heartbeat,
    Judged,
    Published,
    RoundDone,
    Started,
    Stop,
)
from service.trainer.worker import WorkerArguments
from tests.trainer.examples import ROUND

THROUGH = {Partition(0): Offset(12), Partition(3): Offset(0)}


@pytest.mark.parametrize(
    "message",
    [
        Stop(),
        Started(Version(3), THROUGH, "cpu"),
        Heartbeat(progress=7, busy=True),
        RoundDone(ROUND),
        Judged(GateReport(Verdict.HOLD, 3, 0.0, math.inf, 0.1, 0.2), skipped=4),
        Published(Version(4), THROUGH),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_arrives_as_it_was_sent(message: FromWorker | Stop) -> None:
    assert pickle.loads(pickle.dumps(message)) == message


def test_a_micro_batch_arrives_with_its_columns_types_and_offsets() -> None:
    item = ItemId("i")
    sent = MicroBatch(
        partition=np.array([3], np.int32),
        offset=np.array([11], np.int64),
        user=np.array([-5], np.int64),
        slot=np.array([2], np.int32),
        ordinal=np.array([9], np.int64),
        item=np.array([item_key(item)], np.int64),
        kind=np.array([1], np.uint8),
        timestamp=np.array([123], np.int64),
        value=np.array([np.nan], np.float32),
        codes=np.array([[7]], np.int32),
        item_ids=((item_key(item), item),),
        next_offsets=THROUGH,
        opened_s=1.25,
    )
    arrived = pickle.loads(pickle.dumps(sent))
    for name in MicroBatch.__dataclass_fields__:
        before, after = getattr(sent, name), getattr(arrived, name)
        np.testing.assert_array_equal(before, after)
        assert getattr(after, "dtype", None) == getattr(before, "dtype", None)
    assert arrived.next_offsets == THROUGH


def test_a_worker_can_be_started_with_settings_and_slabs() -> None:
    slab = HistorySlab.create(Partition(1), HistorySettings(users=2, events=50))
    try:
        arguments = WorkerArguments(Settings(), (slab.address,))
        assert pickle.loads(pickle.dumps(arguments)) == arguments
    finally:
        slab.close()
