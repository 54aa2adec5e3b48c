"""The command line. Exit codes: 0 done, 1 failed, 2 something has to be set right first, 130
interrupted."""

import argparse
import asyncio
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import __version__, logs
from service.backtest.options import add_arguments as add_backtest_arguments
from service.backtest.options import options_from
from service.errors import ConfigurationError, DamagedVersionError, HeadwaterError, TransientError
from service.extras import require_packages
from service.settings import (
    Settings,
    environment_file,
    load_settings,
    masked,
)
from service.tune.options import add_arguments as add_tune_arguments
from service.tune.options import options_from as tune_options_from
from service.tune.options import require_new

if TYPE_CHECKING:
    from service.registry.registry import Registry

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
_LAST_PORT = 65_535


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `headwater`."""
    arguments = _parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has enough. What is still buffered would fail
        # again when the interpreter ends, so it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code


def _run(arguments: argparse.Namespace) -> int:
    """Run the command; what it raises on purpose becomes one line and an exit code."""
    try:
        settings = load_settings(
            arguments.config or environment_file(), os.environ, _overrides(arguments)
        )
        logs.set_up(settings.log, "main")
        code: int = arguments.run(arguments, settings)
    except ConfigurationError as error:
        print(f"headwater: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except HeadwaterError as error:
        print(f"headwater: {error}", file=sys.stderr)
        return EXIT_FAILED
    return code


def _serve(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.registry.lock import only_service
    from service.trainer import template

    with only_service(settings.storage.registry) if settings.trains else nullcontext():
        try:
            if settings.trains:
                template.ensure_running()  # it imports what a worker needs while we import ours
            from service.app.server import serve

            asyncio.run(serve(settings))
        except ExceptionGroup as group:
            raise _only_fault(group) from None
        finally:
            template.end()
    return 0


def _doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.app.doctor import examine

    return asyncio.run(examine(settings, create=arguments.create))


def _erase(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.app.erase import erase
    from service.domain import UserId

    asyncio.run(erase(settings, UserId(arguments.user), arguments.wait))
    return 0


def _config(arguments: argparse.Namespace, settings: Settings) -> int:
    print(json.dumps(masked(settings), indent=2))
    return 0


def _registry(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.registry.registry import Registry

    registry = Registry.of(settings)
    match arguments.action:
        case "list":
            _list_versions(registry)
        case "show":
            registry.require(arguments.version)
            print(registry.manifest(arguments.version).model_dump_json(indent=2))
        case "rollback":
            pinned = registry.pinned()
            manifest = registry.rollback(arguments.version, time.time_ns() // 1_000_000)
            print(f"version {manifest.version} is version {manifest.parent} again")
            if pinned is not None:
                print(f"version {pinned} is pinned and goes on serving until `registry unpin`")
        case "pin":
            registry.pin(arguments.version)
            print(f"version {arguments.version} serves until `headwater registry unpin`")
        case "unpin":
            registry.pin(None)
            print("the newest intact version serves")
    return 0


def _list_versions(registry: "Registry") -> None:
    try:
        pinned, serving = registry.pinned(), registry.to_serve()
    except (ConfigurationError, TransientError, OSError) as error:
        # Whoever has to pin a version again wants to see which there are.
        print(f"headwater: {error}", file=sys.stderr)
        pinned = serving = None
    columns = f"{'published (UTC)':19}  {'origin':8}  {'parent':>6}  {'items':>8}  ndcg@10"
    print(f"{'version':>7}  {columns}")
    for version in registry.versions():
        try:
            manifest = registry.manifest(version)
        except DamagedVersionError as error:
            print(f"{version:>7}  damaged: {error}")
            continue
        except TransientError as error:
            print(f"{version:>7}  {error}")
            continue
        published = datetime.fromtimestamp(manifest.created_at / 1000, UTC)
        ndcg = manifest.gate.challenger_ndcg if manifest.gate else None
        marks = [
            word
            for word, is_it in (("serves", version == serving), ("pinned", version == pinned))
            if is_it
        ]
        print(
            f"{version:>7}  {published:%Y-%m-%d %H:%M:%S}  {manifest.origin:8}  "
            f"{manifest.parent or '-':>6}  {manifest.items:>8,}  "
            f"{'-' if ndcg is None else format(ndcg, '.4f'):7}  {' '.join(marks)}".rstrip()
        )


def _sandbox(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.sandbox.sandbox_command import run_sandbox

    return run_sandbox(
        arguments.bootstrap, arguments.port, arguments.data, arguments.config, settings
    )


def _demo(arguments: argparse.Namespace, settings: Settings) -> int:
    from service.sandbox.demo import run_demo

    return run_demo(arguments.bootstrap, arguments.events, arguments.keep)


def _backtest(arguments: argparse.Namespace, settings: Settings) -> int:
    options = options_from(arguments)
    if arguments.movielens:
        from service.sandbox.movielens_backtest import backtest_movielens

        return backtest_movielens(options, settings)
    from service.backtest.command import run_backtest

    return run_backtest(options, settings)


def _tune(arguments: argparse.Namespace, settings: Settings) -> int:
    require_packages("`headwater tune`", ("optuna", "tomli_w"), "'.[tune]'")
    options = tune_options_from(
        arguments,
        os.environ,
        arguments.config or environment_file(),
        shlex.join(["headwater", *sys.argv[1:]]),
    )
    require_new(options)
    if arguments.movielens:
        from service.sandbox.movielens_tune import tune_movielens

        return tune_movielens(options, settings)
    from service.tune.command import run_tune

    return run_tune(options, settings)


def _overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    bootstrap = getattr(arguments, "bootstrap", None)
    # An empty one, as of an unset shell variable, is refused rather than taken for none.
    return {} if bootstrap is None else {"kafka": {"bootstrap_servers": bootstrap}}


def _only_fault(group: ExceptionGroup) -> Exception:
    """The first error raised on purpose where there is nothing else; a bug stays a whole group."""
    faults, bugs = group.split(HeadwaterError)
    if faults is None or bugs is not None:
        return group
    error: Exception = faults
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _port(text: str) -> int:
    """A port number as an argument; what it raises argparse tells in one line."""
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {_LAST_PORT}")
    return int(text)


def _seconds(text: str) -> float:
    """A positive number of seconds as an argument."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headwater",
        description="A streaming recommendation service that learns from behaviour as it flows.",
    )
    parser.add_argument("--version", action="version", version=f"headwater {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, metavar="FILE", help="settings file (TOML)")
    kafka = argparse.ArgumentParser(add_help=False)
    kafka.add_argument("--bootstrap", metavar="HOST:PORT", help="kafka.bootstrap_servers")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", parents=[common, kafka], help="run the service")
    serve.set_defaults(run=_serve)

    doctor = commands.add_parser(
        "doctor", parents=[common, kafka], help="check Kafka, topics, model and storage"
    )
    doctor.add_argument("--create", action="store_true", help="create missing topics")
    doctor.set_defaults(run=_doctor)

    erase = commands.add_parser(
        "erase", parents=[common, kafka], help="have the service forget a user"
    )
    erase.add_argument("user", metavar="USER", help="the user id, as events have it")
    erase.add_argument(
        "--wait", type=_seconds, metavar="SECONDS", help="until it has, at most so long"
    )
    erase.set_defaults(run=_erase)

    config = commands.add_parser(
        "config", parents=[common, kafka], help="print the effective settings"
    )
    config.set_defaults(run=_config)

    backtest = commands.add_parser(
        "backtest", parents=[common], help="what would have been recommended, over a file of events"
    )
    add_backtest_arguments(backtest)
    backtest.set_defaults(run=_backtest)

    tune = commands.add_parser(
        "tune", parents=[common], help="search better settings over a file of events"
    )
    add_tune_arguments(tune)
    tune.set_defaults(run=_tune)

    registry = commands.add_parser("registry", help="look at and choose model versions")
    registry.set_defaults(run=_registry)
    actions = registry.add_subparsers(required=True, dest="action", metavar="ACTION")
    actions.add_parser("list", parents=[common], help="all versions")
    show = actions.add_parser("show", parents=[common], help="one version's manifest")
    show.add_argument("version", type=int)
    rollback = actions.add_parser(
        "rollback", parents=[common], help="publish an older version again, as the newest"
    )
    rollback.add_argument("version", type=int, nargs="?", help="default: the one before the newest")
    pin = actions.add_parser("pin", parents=[common], help="serve one version whatever is newer")
    pin.add_argument("version", type=int)
    actions.add_parser("unpin", parents=[common], help="serve the newest again")

    sandbox = commands.add_parser(
        "sandbox", parents=[common, kafka], help="run a local Kafka to play with, or use yours"
    )
    sandbox.add_argument("--port", type=_port, default=9092, help="of the local one; 0: any free")
    sandbox.add_argument(
        "--data", type=Path, help="keep the local one's data here; a temporary folder otherwise"
    )
    sandbox.set_defaults(run=_sandbox)

    demo = commands.add_parser(
        "demo", parents=[common, kafka], help="watch it learn from MovieLens events"
    )
    demo.add_argument("--events", type=int, help="replay only the first so many")
    demo.add_argument("--keep", action="store_true", help="keep the registry and logs of the run")
    demo.set_defaults(run=_demo)
    return parser


if __name__ == "__main__":
    sys.exit(main())
