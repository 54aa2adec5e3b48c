"""Whether the locks still say what pyproject.toml asks for; needs no network.

uv notes beside each pinned package who asked for it. A dependency that was added,
removed or raised without `make lock` shows as a difference between those notes and
pyproject.toml.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# Per package: its pinned versions, and whether pyproject.toml itself asks for it.
Pins = dict[NormalizedName, tuple[set[str], bool]]

PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)")


def main() -> int:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    runtime = project["project"]["dependencies"]
    extras = [
        each for extra in project["project"]["optional-dependencies"].values() for each in extra
    ]
    build = project["dependency-groups"]["build"]
    dev = [each for each in project["dependency-groups"]["dev"] if isinstance(each, str)]
    backend = project["build-system"]["requires"]
    whole = _read("requirements.lock")
    faults = [*_differences("requirements.lock", whole, [*runtime, *extras, *build, *dev])]
    for name, asked in {
        "requirements-serve.lock": runtime,
        "requirements-build.lock": [*build, *backend],
    }.items():
        part = _read(name)
        faults += [*_differences(name, part, asked), *_strays(name, part, whole)]
    for fault in faults:
        print(f"{fault}; run `make lock`", file=sys.stderr)
    return 1 if faults else 0


def _read(lock: str) -> Pins:
    pins: Pins = {}
    name = canonicalize_name("")
    for line in (ROOT / lock).read_text(encoding="utf-8").splitlines():
        if found := PIN.match(line):
            name = canonicalize_name(found["name"])
            versions, asked = pins.get(name, (set(), False))
            pins[name] = (versions | {found["version"]}, asked)
        elif "headwater (pyproject.toml" in line:
            pins[name] = (pins[name][0], True)
    return pins


def _differences(lock: str, pins: Pins, asked: list[str]) -> Iterator[str]:
    wanted = [(canonicalize_name(each.name), each) for each in map(Requirement, asked)]
    for name, requirement in wanted:
        versions, noted = pins.get(name, (set(), False))
        if not noted:
            yield f"{name} is in pyproject.toml but not in {lock}"
        elif not all(map(requirement.specifier.contains, versions)):
            yield f"{lock} pins {name} {sorted(versions)}, but pyproject.toml wants {requirement}"
    noted_names = {name for name, (_, noted) in pins.items() if noted}
    for name in sorted(noted_names - dict(wanted).keys()):
        yield f"{name} is in {lock} but no longer in pyproject.toml"


def _strays(lock: str, part: Pins, whole: Pins) -> Iterator[str]:
    for name, (versions, _) in part.items():
        if versions != whole.get(name, (set(), False))[0]:
            yield f"{lock} pins another {name} than requirements.lock"


if __name__ == "__main__":
    sys.exit(main())
