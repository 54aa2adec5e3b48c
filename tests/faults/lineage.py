"""What the registry's manifests say, read as plain JSON by nobody's code but ours."""

import json
from dataclasses import dataclass
from pathlib import Path

from tests.faults.oracle import Ends, Range


@dataclass(frozen=True, slots=True)
class Version:
    """One manifest."""

    number: int
    parent: int | None
    through: Ends
    ranges: tuple[Range, ...]
    given_up: int  # sequences


def newest_number(storage: Path) -> int:
    """Of the versions that exist; 0 when there is none."""
    found = [int(file.parent.name) for file in _manifests(storage)]
    return max(found, default=0)


def lineage(storage: Path) -> list[Version]:
    """From the newest version back to the first. A parent that was removed ends it."""
    versions = {one.number: one for one in map(_read, _manifests(storage))}
    line: list[Version] = []
    at = max(versions, default=None)
    while at is not None and at in versions:
        line.append(versions[at])
        at = versions[at].parent
    return line


def ranges_of(line: list[Version]) -> list[Range]:
    """Oldest first."""
    return [one for version in reversed(line) for one in version.ranges]


def _manifests(storage: Path) -> list[Path]:
    return list((storage / "registry" / "versions").glob("[0-9]*/manifest.json"))


def _read(file: Path) -> Version:
    manifest = json.loads(file.read_bytes())["manifest"]
    return Version(
        number=manifest["version"],
        parent=manifest["parent"],
        through={int(key): end for key, end in manifest["trained_through"].items()},
        ranges=tuple(
            Range(one["partition"], one["first"], one["next"], one["events"])
            for one in manifest["taught"]
        ),
        given_up=manifest["given_up"],
    )
