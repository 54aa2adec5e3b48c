"""`headwater demo`: the service learns from real people's ratings while you watch.

A Kafka of its own (or yours), `headwater serve` as a process of its own, and MovieLens-100K in
time order through the topics; `demo_run` is what happens then.

With a Kafka of yours the topics' and the group's names are unique to the run, and the topics
are deleted at the end unless `--keep` is given.
"""

import asyncio
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from service.errors import ConfigurationError, HeadwaterError
from service.sandbox.comparison import COMPARED
from service.sandbox.demo_report import Results, print_summary, write_json
from service.sandbox.demo_run import WINDOW, Demo
from service.sandbox.kafka import LocalKafka
from service.sandbox.movielens import ALL_EVENTS, load_movielens
from service.sandbox.picture import draw
from service.sandbox.processes import free_port
from service.sandbox.replay import KIND, Ratings
from service.sandbox.scoreboard import Recommender
from service.sandbox.serve_process import BOOTSTRAP_VARIABLE, ServeProcess, environment
from service.settings import ENV_PREFIX, load_settings
from service.stream.client import delete_topics
from service.stream.topics import needed_topics

_MIN_EVENTS = 5_000  # below this the beginning holds too little to start a model from
_POINTS = 200
_REPORTS = Path("reports")
_GRACE_S = 10.0
_KAFKA_VARIABLES = f"{ENV_PREFIX}KAFKA__"


def run_demo(bootstrap: str | None, events: int | None, keep: bool) -> int:
    """Run it, print the summary, write reports/demo.json and demo.png; 0 when all went well.

    `bootstrap`: a Kafka to use instead of one of our own. `events`: how much of MovieLens.
    `keep`: leave the registry, the logs and the topics behind. Raises `HeadwaterError`.
    """
    started_s = time.monotonic()
    events = min(events or ALL_EVENTS, ALL_EVENTS)
    if events < _MIN_EVENTS:
        raise ConfigurationError(f"--events must be at least {_MIN_EVENTS:,}")
    console = Console()
    ratings = Ratings(load_movielens(), events)
    if bootstrap is None:
        bootstrap = os.environ.get(BOOTSTRAP_VARIABLE)
    with ExitStack() as stack:
        folder = _folder(stack, keep)
        _log_to(folder / "demo.log")
        if bootstrap is None:
            console.print("Starting Apache Kafka (the first start ever downloads it, 45 MB) ...")
            bootstrap = stack.enter_context(LocalKafka(folder / "kafka")).bootstrap
            names = "headwater"
        else:
            names = f"headwater-demo-{uuid.uuid4().hex[:8]}"
        port = free_port()
        chosen = _variables(bootstrap, names, folder, port)
        settings = load_settings(None, chosen)
        serve = ServeProcess(chosen, port, folder / "serve.log")
        demo = Demo(ratings, settings, serve, console, started_s)
        try:
            results = asyncio.run(demo.run())
        except ExceptionGroup as group:
            raise _first(group) from None
        except asyncio.CancelledError:  # SIGTERM
            raise KeyboardInterrupt from None
        finally:
            serve.end(_GRACE_S)
            if names != "headwater" and not keep:
                asyncio.run(delete_topics(settings.kafka, needed_topics(settings.topics)))
    _report(demo, results, console)
    if keep:
        console.print(f"Kept: {folder} (registry, serve.log, demo.log)", soft_wrap=True)
    return 0


def _folder(stack: ExitStack, keep: bool) -> Path:
    if keep:
        return Path(tempfile.mkdtemp(prefix="headwater-demo-"))
    name = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="headwater-demo-", ignore_cleanup_errors=True)
    )
    return Path(name)


def _log_to(file: Path) -> None:
    """A log line in the middle of the live view would tear it."""
    logging.basicConfig(filename=file, level=logging.INFO, force=True)
    logging.captureWarnings(True)


def _variables(bootstrap: str, names: str, folder: Path, port: int) -> dict[str, str]:
    """The settings of the run, as the environment of `headwater serve`.

    Of the caller's own variables only those about Kafka count: security, time limits.
    """
    overrides: Mapping[str, Any] = {
        "kafka": {"bootstrap_servers": bootstrap, "group_id": names},
        "topics": {
            "events": f"{names}.events",
            "recommendations": f"{names}.recommendations",
            "dead_letter": f"{names}.events.dead-letter",
            "partitions": 2,
        },
        "events": {"kinds": [KIND]},
        "history": {"users": 2000, "events": 1024},  # all that a MovieLens user has seen
        # The replay goes through seven months in minutes: age would empty the holdout.
        "trainer": {"holdout": {"max_age_s": 1e9}},
        "storage": {"root": str(folder / "storage")},
        "admin": {"port": port},
    }
    ours = {name: text for name, text in os.environ.items() if name.startswith(_KAFKA_VARIABLES)}
    return {**ours, **environment(overrides)}


def _first(error: BaseException) -> BaseException:
    """The fault behind a group of tasks that were cancelled because of it."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(HeadwaterError)
        error = (ours or error).exceptions[0]
    return error


def _report(demo: Demo, results: Results, console: Console) -> None:
    _REPORTS.mkdir(exist_ok=True)
    write_json(results, _REPORTS / "demo.json")
    compared = dict.fromkeys(COMPARED, 0)
    curve = demo.board.curve({**compared, Recommender.FROZEN_AT_HALF: demo.half}, WINDOW, _POINTS)
    draw(curve, results.published_at, demo.half, WINDOW, _REPORTS / "demo.png")
    print_summary(results, console)
    console.print(f"Written: {_REPORTS / 'demo.json'}, {_REPORTS / 'demo.png'}")
