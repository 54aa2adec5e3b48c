"""However a child takes it, it is ended."""

import signal
import subprocess
import sys

import pytest

from service.sandbox.processes import end

PROGRAM = """
import signal, time
signal.signal(signal.SIGTERM, signal.{how})
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("how", "grace_s", "code"),
    [("SIG_DFL", 30.0, -signal.SIGTERM), ("SIG_IGN", 0.1, -signal.SIGKILL)],
)
def test_it_is_asked_first_and_killed_after_the_grace_time(
    how: str, grace_s: float, code: int
) -> None:
    command = [sys.executable, "-c", PROGRAM.format(how=how)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        end(process, grace_s)
        assert process.returncode == code
