"""Which micro-batches the parent keeps, sends, sends again and lets go."""

import multiprocessing
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import (
    Erasure,
    MicroBatch,
    Offset,
    Offsets,
    Partition,
    UserId,
    is_covered,
    no_codes,
    stable_key,
)
from service.settings import RestartSettings, Settings, StorageSettings, TrainerSettings
from service.state.catalogue import CatalogueItem
from service.trainer import process
from service.trainer.messages import Catalogued, DescriptionDone
from service.trainer.process import (
    Listener,
    TrainerProcess,
    UntrainedBatches,
    WorkerEnded,
)
from tests.trainer.examples import known

FIRST, SECOND = Partition(0), Partition(1)
MANY = 1_000_000
WITHIN_S = 120.0  # the machine may be busy


def a_batch(events: int, through: int) -> MicroBatch:
    """`events` events of the first partition, the last at offset `through` - 1."""
    longs = np.zeros(events, np.int64)
    return MicroBatch(
        partition=np.zeros(events, np.int32),
        offset=np.arange(through - events, through),
        user=longs.copy(),
        slot=np.zeros(events, np.int32),
        ordinal=longs,
        item=longs,
        kind=np.zeros(events, np.uint8),
        timestamp=longs,
        value=np.full(events, np.nan, np.float32),
        codes=no_codes(events),
        item_ids=(),
        next_offsets={FIRST: Offset(through)},
        opened_s=0.0,
    )


def through(offset: int) -> Offsets:
    return {FIRST: Offset(offset)}


def three() -> tuple[UntrainedBatches, list[MicroBatch]]:
    untrained = UntrainedBatches()
    batches = [a_batch(10, 10), a_batch(20, 30), a_batch(30, 60)]
    for batch in batches:
        untrained.add(batch)
    return untrained, batches


class TestCovered:
    def test_a_version_covers_what_it_is_trained_through(self) -> None:
        assert is_covered(through(10), through(10))
        assert is_covered(through(10), {FIRST: Offset(11), SECOND: Offset(0)})
        assert not is_covered(through(10), through(9))

    def test_every_partition_counts_and_an_unknown_one_is_at_the_start(self) -> None:
        both = {FIRST: Offset(1), SECOND: Offset(1)}
        assert not is_covered(both, through(5))
        assert is_covered({SECOND: Offset(0)}, {})
        assert is_covered({}, {})


class TestUntrainedBatches:
    def test_batches_are_sent_once_and_in_order(self) -> None:
        untrained, batches = three()
        assert [untrained.next_to_send(MANY) for _ in range(4)] == [*batches, None]
        assert untrained.at_worker == 3

    def test_the_worker_is_given_no_more_than_it_can_take_in_a_while(self) -> None:
        untrained, batches = three()
        assert untrained.next_to_send(25) is batches[0]
        assert untrained.next_to_send(25) is batches[1]
        assert untrained.events_at_worker == 30
        assert untrained.next_to_send(25) is None
        untrained.learned(1)
        assert untrained.next_to_send(25) is batches[2]

    def test_what_was_learned_stays_until_a_version_holds_it(self) -> None:
        untrained, batches = three()
        untrained.next_to_send(MANY)
        untrained.learned(1)
        assert (untrained.events, untrained.at_worker) == (60, 0)
        assert untrained.covered(through(10)) == batches[:1]
        assert untrained.events == 50

    def test_a_batch_of_which_a_part_is_missing_is_kept(self) -> None:
        untrained, batches = three()
        assert untrained.covered(through(29)) == batches[:1]
        assert untrained.next_to_send(MANY) is batches[1]

    def test_the_next_worker_is_sent_all_that_no_version_holds(self) -> None:
        untrained, batches = three()
        for _ in range(3):
            untrained.next_to_send(MANY)
        untrained.learned(2)
        untrained.covered(through(10))
        untrained.send_again()
        assert untrained.at_worker == 0
        assert [untrained.next_to_send(MANY) for _ in range(3)] == [*batches[1:], None]

    def test_all_is_learned_once_the_worker_has_no_batch_in_hand(self) -> None:
        untrained, _ = three()
        for _ in range(3):
            assert not untrained.is_learned
            untrained.next_to_send(MANY)
        untrained.learned(3)
        assert untrained.is_learned
        untrained.send_again()
        assert not untrained.is_learned

    def test_what_is_erased_is_not_sent_and_not_sent_again(self) -> None:
        _, batches = three()
        user = np.array([stable_key("u")], np.int64)
        for batch in batches:
            batch.user[::2] = user
        untrained = UntrainedBatches()
        for batch in batches:
            untrained.add(batch)
        untrained.next_to_send(MANY)
        untrained.erase([Erasure(FIRST, Offset(50), UserId("u"))])
        assert untrained.events == 5 + 10 + 20
        untrained.send_again()
        sent = [untrained.next_to_send(MANY) for _ in range(3)]
        offsets = np.concatenate([batch.offset for batch in sent if batch is not None])
        assert offsets.tolist() == [offset for offset in range(60) if offset % 2 or offset >= 50]
        assert [batch.next_offsets for batch in sent if batch is not None] == [
            batch.next_offsets for batch in batches
        ]

    def test_forgetting_leaves_nothing(self) -> None:
        untrained, _ = three()
        untrained.next_to_send(MANY)
        untrained.clear()
        assert (untrained.events, untrained.at_worker) == (0, 0)
        assert untrained.next_to_send(MANY) is None
        assert untrained.covered(through(60)) == []

    @given(st.lists(st.sampled_from(["add", "send", "learn", "cover", "die"]), max_size=60))
    def test_no_batch_is_lost_whatever_happens(self, happenings: list[str]) -> None:
        untrained = UntrainedBatches()
        added = sent_through = covered_through = 0
        for happening in happenings:
            if happening == "add":
                added += 1
                untrained.add(a_batch(1, added))
            elif happening == "send":
                batch = untrained.next_to_send(MANY)
                if batch is not None:
                    assert batch.next_offsets[FIRST] == sent_through + 1
                    sent_through += 1
            elif happening == "learn":
                untrained.learned(1)
            elif happening == "cover":
                covered_through = max(covered_through, sent_through)
                untrained.covered(through(covered_through))
            else:
                untrained.send_again()
                sent_through = covered_through
            assert untrained.events == added - covered_through
            assert 0 <= untrained.at_worker <= sent_through - covered_through


def test_a_worker_hears_of_what_is_withdrawn_while_it_lives_and_the_next_of_none_of_it() -> None:
    trainer = TrainerProcess(Settings(), lambda _: None)
    here, gone = (CatalogueItem(*known(number), available=number == 0) for number in range(2))
    trainer.describe([replace(gone, available=True), here])
    trainer.describe([gone])
    assert trainer._next_catalogued() == Catalogued((gone, here))
    assert list(trainer._catalogue) == [here.key]


def test_a_worker_is_told_of_a_large_catalogue_as_fast_as_it_gets_through_it() -> None:
    """What it has at hand is bounded; micro-batches do not wait for the rest."""
    trainer = TrainerProcess(Settings(), lambda _: None)
    at_hand = process._ITEMS_AT_ONCE * process._TOLD_AHEAD
    items = [CatalogueItem(*known(number)) for number in range(at_hand + 1)]
    trainer.describe(items)
    trainer.offer(a_batch(1, 1))
    ours, theirs = multiprocessing.Pipe()
    ended = threading.Event()
    sending = threading.Thread(target=trainer._send, args=(ours, ended))
    sending.start()
    try:
        told = [theirs.recv() for _ in range(process._TOLD_AHEAD)]
        assert [one for part in told for one in part.items] == items[:at_hand]
        assert isinstance(theirs.recv(), MicroBatch)
        assert not theirs.poll(0.3)
        trainer._heard(DescriptionDone())
        assert theirs.recv() == Catalogued(tuple(items[at_hand:]))
    finally:
        ended.set()
        sending.join()


def test_a_micro_batch_with_nothing_but_an_erasure_reaches_the_worker() -> None:
    trainer = TrainerProcess(Settings(), lambda _: None)
    erasure = Erasure(FIRST, Offset(9), UserId("ann"))
    erasing = replace(a_batch(0, 10), erasures=(erasure,))
    for batch in (a_batch(9, 9), erasing, a_batch(1, 11)):
        trainer.offer(batch)
    ours, theirs = multiprocessing.Pipe()
    ended = threading.Event()
    sending = threading.Thread(target=trainer._send, args=(ours, ended))
    sending.start()
    try:
        sent = [theirs.recv() for _ in range(3) if theirs.poll(10)]
    finally:
        ended.set()
        sending.join()
    assert [(len(batch), batch.erasures) for batch in sent] == [(9, ()), (0, (erasure,)), (1, ())]


def test_every_end_of_a_worker_is_told_and_whether_another_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    restart = RestartSettings(first_delay_s=0.001)
    heard: list[object] = []
    trainer = TrainerProcess(Settings(trainer=TrainerSettings(restart=restart)), heard.append)
    second_lives = threading.Event()

    def one_life(_: object) -> str:
        if not heard:
            return "exit code -9"
        second_lives.set()
        trainer._stopping.wait()
        return "exit code 0"

    monkeypatch.setattr(trainer, "_one_life", one_life)
    trainer.start((), {}, {})
    assert second_lives.wait(10)
    trainer.stop()
    assert heard == [
        WorkerEnded("exit code -9", restarts=True),
        WorkerEnded("exit code 0", restarts=False),
    ]


def test_a_worker_for_which_there_are_no_files_is_tried_again() -> None:
    restart = RestartSettings(first_delay_s=0.001, max_delay_s=0.01)
    heard: list[object] = []
    failed = threading.Event()

    def listen(said: object) -> None:
        heard.append(said)
        failed.set()

    trainer = TrainerProcess(Settings(trainer=TrainerSettings(restart=restart)), listen)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no fourth file is opened
    try:
        trainer.start((), {}, {})
        assert failed.wait(10)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        assert isinstance(heard[0], WorkerEnded)
        assert heard[0].restarts
        assert "could not be started: [Errno 24]" in heard[0].reason
        deadline_s = time.monotonic() + WITHIN_S
        while trainer.pid is None and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert trainer.pid is not None
    finally:
        trainer.stop()
    assert trainer.pid is None


def test_a_template_that_dies_is_replaced(tmp_path: Path) -> None:
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()
    trainer = TrainerProcess(without_versions(tmp_path), told_ends(ends))
    trainer.start((), {}, {})
    try:
        assert ends.get(timeout=WITHIN_S) == "exit code 1"
        killed = template()
        os.kill(killed, signal.SIGKILL)
        while template() == killed:
            ends.get(timeout=WITHIN_S)
        assert "exit code 1" in [ends.get(timeout=WITHIN_S) for _ in range(3)]
    finally:
        trainer.stop()


@pytest.mark.parametrize("harm", ["frozen", "out of reach"])
def test_a_template_that_does_not_answer_is_replaced(harm: str, tmp_path: Path) -> None:
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()
    trainer = TrainerProcess(without_versions(tmp_path, start_timeout_s=30), told_ends(ends))
    trainer.start((), {}, {})
    try:
        assert ends.get(timeout=WITHIN_S) == "exit code 1"
        if harm == "frozen":
            os.kill(template(), signal.SIGSTOP)
        else:
            Path(forkserver._forkserver._forkserver_address).unlink()  # type: ignore[attr-defined]
        told = [ends.get(timeout=WITHIN_S)]
        while "could not be started" not in told[-1]:
            told.append(ends.get(timeout=WITHIN_S))
        while told[-1] != "exit code 1":
            told.append(ends.get(timeout=WITHIN_S))
            assert len(told) < 10, told
    finally:
        trainer.stop()


def test_a_worker_for_which_there_are_no_threads_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: queue.SimpleQueue[str] = queue.SimpleQueue()
    trainer = TrainerProcess(without_versions(tmp_path), told_ends(ends))
    start, refused = threading.Thread.start, {"trainer-start", "trainer-sender"}

    def few(thread: threading.Thread) -> None:
        if thread.name in refused:
            refused.remove(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", few)
    trainer.start((), {}, {})
    try:
        assert "could not be started: can't start" in ends.get(timeout=WITHIN_S)
        assert "could not be served: can't start" in ends.get(timeout=WITHIN_S)
        assert ends.get(timeout=WITHIN_S) == "exit code 1"
    finally:
        trainer.stop()


# What the first worker says of its end.
PROGRAM = """
import queue
from pathlib import Path
from service.trainer.process import TrainerProcess
from tests.trainer.test_process import told_ends, without_versions

if __name__ == "__main__":
    ends = queue.SimpleQueue()
    trainer = TrainerProcess(without_versions(Path.cwd()), told_ends(ends))
    trainer.start((), {}, {})
    print(ends.get(timeout=60))
    trainer.stop()
"""


def test_workers_have_no_modules_of_the_folder_where_the_service_is_run(tmp_path: Path) -> None:
    script, folder = tmp_path / "program.py", tmp_path / "elsewhere"
    script.write_text(PROGRAM, encoding="utf-8")
    (folder / "service").mkdir(parents=True)
    (folder / "service" / "__init__.py").write_text("raise SystemExit('a stranger')")
    told = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert told.stdout == "exit code 1\n", told.stderr
    assert "a stranger" not in told.stderr


def template() -> int:
    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


def told_ends(ends: queue.SimpleQueue[str]) -> Listener:
    """A listener that passes on why workers ended, and nothing else."""

    def listen(said: object) -> None:
        if isinstance(said, WorkerEnded):
            ends.put(said.reason)

    return listen


def without_versions(root: Path, start_timeout_s: float = 120.0) -> Settings:
    """A worker ends at once: the registry is empty."""
    restart = RestartSettings(first_delay_s=0.01, max_delay_s=0.1, start_timeout_s=start_timeout_s)
    return Settings(trainer=TrainerSettings(restart=restart), storage=StorageSettings(root=root))
