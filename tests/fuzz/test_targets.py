"""The seeds, and what fuzzing found before, hold without the fuzzer too."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

SEEDS = sorted((Path(__file__).parent / "seeds").glob("*/*"))
# An id that stood twice in an object, and a trace parent with control characters.
FOUND = [
    ("catalogue", b'i1\n{"item_id":"i1","vectors":{"":"i1","":[]}}'),
    ("headers", b'traceparent=00-0a2023-11-14T23:13:20+"ti\0\0\0\0amp"01:00n'),
]


@pytest.mark.parametrize("seed", SEEDS, ids=[f"{seed.parent.name}/{seed.name}" for seed in SEEDS])
def test_a_seed_is_an_event_or_a_dead_letter(seed: Path) -> None:
    TARGETS[seed.parent.name](seed.read_bytes())


@pytest.mark.parametrize(("target", "data"), FOUND)
def test_what_was_found_is_mended(target: str, data: bytes) -> None:
    TARGETS[target](data)


def test_every_target_has_seeds() -> None:
    assert {seed.parent.name for seed in SEEDS} == set(TARGETS)
