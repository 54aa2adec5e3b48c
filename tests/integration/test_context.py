"""Features of the context that come and go between starts of one service."""

import json
from pathlib import Path

import pytest

from service.domain import Version
from service.registry.registry import Registry
from service.settings import RegistrySettings
from tests.integration.running import Service, headwater
from tests.integration.traffic import Stream, make_stream, produce, recommendations, tally

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WITHIN_S = 120.0
KEEPS_ALL = {"HEADWATER_REGISTRY__KEEP_VERSIONS": "1000"}
HOUR, GAP, PAGE = {"kind": "hour"}, {"kind": "gap"}, {"kind": "category", "name": "page"}


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def reads(service: Service, version: int) -> list[str]:
    """The kinds of the features that a version reads."""
    manifest = Registry(service.storage / "registry", RegistrySettings()).manifest(Version(version))
    return [feature["kind"] for feature in manifest.model.get("context", [])]


def learn(service: Service, stream: Stream, numbers: range) -> list[str]:
    """Produce events and wait for a version that was trained on some of them."""
    before = service.version()
    expected = produce(stream, numbers)
    service.wait_for(lambda: service.version() > before, "a new version", WITHIN_S)
    return expected


def roll_back(service: Service, stream: Stream, version: int) -> list[str]:
    """An older version serves with its own features; what is trained from it has today's."""
    before, wanted = service.version(), reads(service, version)
    done = headwater(["registry", "rollback", str(version)], service.environ)
    assert done.returncode == 0, done.stderr

    def is_there() -> bool:
        versions = Registry(service.storage / "registry", RegistrySettings()).versions()
        return any(reads(service, one) == wanted for one in versions if before < one)

    service.wait_for(is_there, "the old version", WITHIN_S)
    expected = learn(service, stream, range(2_000, 3_000))
    service.wait_for(
        lambda: reads(service, service.version()) == ["gap", "hour"],
        "one trained from it",
        WITHIN_S,
    )
    return expected


def test_features_change_over_a_lineage_that_goes_on(stream: Stream, tmp_path: Path) -> None:
    expected: list[str] = []
    versions: list[int] = []
    for round_number, features in enumerate(([HOUR, PAGE], [GAP, HOUR])):
        more = KEEPS_ALL | {"HEADWATER_MODEL__CONTEXT": json.dumps(features)}
        with Service(stream, tmp_path, more) as service:
            assert service.version() >= max(versions, default=1)  # the last one serves on
            start = round_number * 1_000
            expected += learn(service, stream, range(start, start + 1_000))
            versions.append(service.version())
            assert reads(service, versions[-1]) == [feature["kind"] for feature in features]

            if round_number:
                expected += roll_back(service, stream, versions[0])
    result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    assert (result.missing, result.unexpected) == (0, 0)
