"""One target under the fuzzer, in a process of its own: `python -m tests.fuzz.target NAME ...`.

What follows the name are libFuzzer's arguments. The fuzzer ends the process.
"""

import sys

import atheris

with atheris.instrument_imports(include=["service", "tests.fuzz.targets"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    program, name, *arguments = sys.argv
    atheris.Setup([program, *arguments], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
