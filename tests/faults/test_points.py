import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.orders import Blow, Order, Orders
from tests.faults.points import MAIN, WORKER, Point

# Comes to a point again and again, and says so.
PROGRAM = """
import sys, time
from pathlib import Path
from tests.faults.points import Point, install

install({"copy": Point("shutil", "copy")}, Path(sys.argv[1]))
import shutil

count = 0
while count < 200:
    count += 1
    try:
        shutil.copy("/nowhere", "/nowhere")
    except FileNotFoundError:
        pass
    print(count, int(time.time() - time.clock_gettime(time.CLOCK_REALTIME)), flush=True)
    time.sleep(0.02)
"""


@pytest.mark.parametrize("point", [*MAIN.values(), *WORKER.values()], ids=lambda one: one.name)
def test_every_point_is_there(point: Point) -> None:
    target: object = importlib.import_module(point.module)
    for part in point.name.split("."):
        target = getattr(target, part)
    assert callable(target)


def started(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_an_order_is_carried_out_once_and_reported(tmp_path: Path) -> None:
    orders = Orders(tmp_path)
    orders.give(Order("copy", Blow.KILL, passes=3))
    with started(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.read().split()[::2] == ["1", "2", "3"]
    assert first.returncode == -signal.SIGKILL
    struck = orders.wait(1)
    assert struck is not None
    assert (struck.point, struck.pid) == ("copy", first.pid)
    assert struck.at_s <= time.monotonic()
    assert orders.read() is None


def test_an_order_for_a_point_that_nobody_comes_to_is_withdrawn(tmp_path: Path) -> None:
    orders = Orders(tmp_path)
    orders.give(Order("elsewhere", Blow.KILL))
    assert orders.wait(0.1) is None
    assert orders.read() is None


def test_the_clock_goes_ahead_when_it_is_told_to(tmp_path: Path) -> None:
    Orders(tmp_path).set_clock(3600)
    with started(tmp_path) as program:
        assert program.stdout is not None
        assert 3598 <= int(program.stdout.readline().split()[1]) <= 3600
        program.kill()


def test_without_memory_the_process_gets_an_error(tmp_path: Path) -> None:
    Orders(tmp_path).give(Order("copy", Blow.EXHAUST))
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert program.returncode == 1
    assert "MemoryError" in program.stderr
