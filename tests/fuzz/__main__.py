"""Fuzz each target for its share of the time, at low priority; writes reports/fuzz.json.

What was found interesting is kept in reports/fuzz/NAME and is where the next run goes on. An input
that is a find lies in reports/fuzz/finds; `python -m tests.fuzz --again FILE` runs it once more.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.targets import TARGETS

_HERE = Path(__file__).parent
_REPORTS = Path("reports")
_SLOW_S = 5  # an input that takes longer is a find
_MAX_BYTES = 20_000  # a little above the targets' own limit
_MEMORY_MB = 2048
_GRACE_S = 120  # for the start and the end


@dataclass(frozen=True, slots=True)
class Row:
    """What one target's run showed."""

    target: str
    seconds: int
    inputs: int
    edges: int  # of instrumented code that some input has taken
    corpus: int  # inputs kept, each of which takes a way of its own
    slowest_s: int
    crashes: int
    finds: list[str]


def main() -> int:
    options = _options()
    if options.again is not None:
        TARGETS[options.again.name.split("-")[0]](options.again.read_bytes())
        return 0
    if find_spec("atheris") is None:
        print(
            "fuzz: atheris is missing: `.venv/bin/uv pip install --group fuzz` installs it "
            "(Linux on x86-64, Python 3.11 to 3.14)",
            file=sys.stderr,
        )
        return 2
    names = options.target or list(TARGETS)
    rows = [_fuzz(name, max(options.seconds // len(names), 1), options.seed) for name in names]
    _REPORTS.mkdir(exist_ok=True)
    report = {
        "seconds": sum(row.seconds for row in rows),
        "inputs": sum(row.inputs for row in rows),
        "crashes": sum(row.crashes for row in rows),
        "targets": [asdict(row) for row in rows],
    }
    (_REPORTS / "fuzz.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(
            f"{row.target:10} {row.inputs:>12,} inputs  {row.edges:>6,} edges  "
            f"{row.corpus:>6,} kept  {row.crashes} crashes"
        )
    return int(report["crashes"] != 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="of all targets together")
    parser.add_argument("--target", nargs="*", choices=sorted(TARGETS), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer; 0: another each time")
    parser.add_argument("--again", type=Path, metavar="FILE", help="run one input once more")
    return parser.parse_args()


def _fuzz(name: str, seconds: int, seed: int) -> Row:
    kept, finds = _REPORTS / "fuzz" / name, _REPORTS / "fuzz" / "finds"
    for folder in (kept, finds):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(finds.iterdir())
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.target",
            name,
            f"-max_total_time={seconds}",
            f"-timeout={_SLOW_S}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-max_len={_MAX_BYTES}",
            f"-dict={_HERE / 'dictionary.txt'}",
            f"-artifact_prefix={finds / name}-",
            f"-seed={seed}",
            "-print_final_stats=1",
            str(kept),
            str(_HERE / "seeds" / name),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds + _GRACE_S,
        check=False,
        preexec_fn=lambda: os.nice(10) and None,
    )
    found = sorted(str(path) for path in set(finds.iterdir()) - before)
    if done.returncode != 0:
        print(done.stdout[-4000:], file=sys.stderr)
    return Row(
        target=name,
        seconds=seconds,
        inputs=_last(r"stat::number_of_executed_units:\s*(\d+)", done.stdout),
        edges=_last(r"cov: (\d+)", done.stdout),
        corpus=_last(r"corp: (\d+)/", done.stdout),
        slowest_s=_last(r"stat::slowest_unit_time_sec:\s*(\d+)", done.stdout),
        crashes=max(len(found), int(done.returncode != 0)),
        finds=found,
    )


def _last(pattern: str, text: str) -> int:
    """The last figure that the fuzzer told; 0 where it told none."""
    figures = re.findall(pattern, text)
    return int(figures[-1]) if figures else 0


if __name__ == "__main__":
    sys.exit(main())
