"""`headwater registry` against a live service, and a damaged version at start."""

import json
import subprocess
from pathlib import Path

import pytest

from service.registry.registry import Registry
from service.settings import RegistrySettings
from tests.integration.running import Service, headwater
from tests.integration.traffic import Stream, event, make_stream, produce, send

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SECONDS = 10.0  # a poll each 0.3 s, and loading, on a busy machine


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


def registry(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = headwater(["registry", *arguments], service.environ)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_pins_and_rollbacks_change_what_serves(stream: Stream, tmp_path: Path) -> None:
    with Service(stream, tmp_path) as service:
        produce(stream, range(1_000))
        service.wait_for(
            lambda: service.version() > 1 and service.metric("headwater_untrained_events") == 0,
            "all events trained on",
            90,
        )
        newest = service.version()

        listed = registry(service, "list").stdout
        assert any(f"{newest} " in line and "serves" in line for line in listed.splitlines())
        shown = json.loads(registry(service, "show", str(newest)).stdout)
        assert shown["version"] == newest
        assert registry(service, "pin", "4711").returncode == 2

        assert registry(service, "pin", "1").returncode == 0
        service.wait_for(lambda: service.version() == 1, "the pinned version", SECONDS)
        send(stream, b"user-1", json.dumps(event(1)).encode())
        assert service.version() == 1

        assert registry(service, "unpin").returncode == 0
        service.wait_for(lambda: service.version() >= newest, "the newest version", SECONDS)

        rolled = registry(service, "rollback", "1")
        assert rolled.returncode == 0
        assert "is version 1 again" in rolled.stdout
        number = int(rolled.stdout.split()[1])
        service.wait_for(lambda: service.version() == number, "what was rolled back to", SECONDS)

        # Learning goes on from there.
        produce(stream, range(1_000, 2_000))
        service.wait_for_version(after=number)


def test_a_damaged_newest_version_is_refused_at_start(stream: Stream, tmp_path: Path) -> None:
    with Service(stream, tmp_path) as service:
        produce(stream, range(1_000))
        service.wait_for(
            lambda: service.version() > 1 and service.metric("headwater_untrained_events") == 0,
            "all events trained on",
            90,
        )
    versions = Registry(service.storage / "registry", RegistrySettings()).versions()
    weights = service.storage / f"registry/versions/{versions[-1]:08d}/weights.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)

    with Service(stream, tmp_path) as service:
        assert f"refused version {versions[-1]}" in service.text()
        assert f"version {versions[-2]} serves" in service.text()
        service.wait_for_version(after=versions[-1])  # what it had learned is learned again
