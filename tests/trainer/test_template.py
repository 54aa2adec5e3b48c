"""What a worker finds when it is forked. In a process of its own: each has one template."""

import os
import subprocess
import sys
from pathlib import Path

WITHIN_S = 120.0

PROGRAM = """
import os
import sys
from pathlib import Path

import torch

from service.trainer import template


def look_round(connection):
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    worker = sys.modules.get("service.trainer.worker")
    connection.send((worker is not None, threads, torch.cuda._is_in_bad_fork()))


if __name__ == "__main__":
    context = template.ensure_running()
    ours, theirs = context.Pipe()
    process = context.Process(target=look_round, args=(theirs,))
    process.start()
    print(*ours.recv())
    process.join()
"""


def test_all_is_imported_and_nothing_was_begun_that_a_fork_would_break(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM, encoding="utf-8")
    told = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    imported, threads_of_template, cannot_use_a_gpu = told.stdout.split()
    assert imported == "True"
    assert threads_of_template == "1"
    assert cannot_use_a_gpu == "False"
