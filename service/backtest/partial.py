"""Finished seeds of a run that is not whole yet, so that `--resume` need not run them again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import orjson
from pydantic import ValidationError

from service.backtest.options import Options
from service.backtest.outputs import writing
from service.backtest.report import SECTIONS, plain_options
from service.backtest.results import SeedResult
from service.backtest.scores import Plain
from service.backtest.table import Table
from service.errors import ConfigurationError
from service.model.item_tower import Described
from service.settings import Settings, masked

_MADE = 4  # raised when a seed's result has other models or fields
# They do not change what a seed finds.
_ELSEWHERE = ("seeds", "out", "html", "resume", "skip_bad")


class Partial(Plain):
    """The file."""

    fingerprint: str
    runs: list[SeedResult]


def fingerprint(
    tables: Sequence[Table],
    settings: Settings,
    options: Options,
    described: Described | None = None,
) -> str:
    """A hash of all that a seed's result follows from, but for the program and the machine."""
    digest = hashlib.blake2b(digest_size=16)
    for table in tables:
        digest.update(len(table).to_bytes(8, "little"))
        columns = (table.user, table.item, table.kind, table.timestamp, table.value, table.codes)
        for column in columns:
            digest.update(column.tobytes())
    if described:
        digest.update(described.keys.tobytes())
        digest.update(described.frozen.tobytes())
    asked = {
        name: value for name, value in plain_options(options).items() if name not in _ELSEWHERE
    }
    plain = masked(settings)
    plain = {name: dict(plain[name]) for name in SECTIONS}
    plain["model"].pop("seed")
    digest.update(orjson.dumps([_MADE, asked, plain], option=orjson.OPT_SORT_KEYS))
    return digest.hexdigest()


def load(file: Path, wanted: str) -> list[SeedResult]:
    """The seeds that are done. Raises ConfigurationError when they belong to another run."""
    try:
        found = Partial.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError):
        raise ConfigurationError(
            f"cannot go on from {file}: it is damaged; run without --resume"
        ) from None
    if found.fingerprint != wanted:
        raise ConfigurationError(
            f"cannot go on from {file}: it was made with other files, options or settings; "
            "run without --resume"
        )
    return found.runs


def save(file: Path, made_for: str, runs: Sequence[SeedResult]) -> None:
    """Replace the file in one step."""
    new = file.with_name(f"{file.name}.new")
    with writing(file):
        new.write_text(Partial(fingerprint=made_for, runs=list(runs)).model_dump_json())
        new.replace(file)
