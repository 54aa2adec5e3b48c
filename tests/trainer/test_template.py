"""What a worker finds when it is forked."""

import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from service.trainer import template

WITHIN_S = 120.0


def look_round(connection: Connection) -> None:
    """In the forked process. Nothing that this module imports brings the worker's modules."""
    threads = len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))
    connection.send(
        (
            "service.trainer.worker" in sys.modules,
            threads,
            torch.cuda._is_in_bad_fork(),
        )
    )


def test_all_is_imported_and_nothing_was_begun_that_a_fork_would_break() -> None:
    context = template.ensure_running()
    ours, theirs = context.Pipe()
    process = context.Process(target=look_round, args=(theirs,))
    process.start()
    assert ours.poll(WITHIN_S)
    imported, threads_of_template, cannot_use_a_gpu = ours.recv()
    process.join(WITHIN_S)
    assert imported
    assert threads_of_template == 1
    assert not cannot_use_a_gpu
