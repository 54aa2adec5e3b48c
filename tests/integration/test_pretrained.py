"""A pretrained body that stays as it is, with LoRA beside it, fine-tuned on every micro-batch."""

import json
from pathlib import Path

import pytest

from service.registry.artifact import FROZEN_FILE, WEIGHTS_FILE
from tests.integration.running import Service
from tests.integration.traffic import Stream, produce, recommendations, tally
from tests.model.examples import PLACES, save_llama

pytestmark = [pytest.mark.integration, pytest.mark.slow]

WITHIN_S = 120.0


def test_a_frozen_body_with_lora_learns_from_the_stream(stream: Stream, tmp_path: Path) -> None:
    body = save_llama(tmp_path / "llama")
    more = {
        "HEADWATER_MODEL__BACKBONE": json.dumps({"kind": "pretrained", "name": str(body)}),
        "HEADWATER_MODEL__MAX_LENGTH": str(PLACES),
        "HEADWATER_TRAINER__TRAINED": json.dumps({"kind": "lora", "rank": 2, "alpha": 4}),
        "HEADWATER_REGISTRY__KEEP_VERSIONS": "1000",
    }
    expected: list[str] = []
    last = 1
    for start in (0, 1_000):  # and once more from what the first left behind
        with Service(stream, tmp_path / "service", more) as service:
            assert service.version() >= last
            expected += produce(stream, range(start, start + 1_000))
            last = service.wait_for_version(after=service.version(), within_s=WITHIN_S)
            manifests = service.manifests()
    # One body for all versions, and weights beside it that go on changing.
    assert len({manifest.files[FROZEN_FILE].sha256 for manifest in manifests}) == 1
    folder = service.storage / "registry"
    assert len({path.stat().st_ino for path in folder.rglob(FROZEN_FILE)}) == 1
    weights = {manifest.files[WEIGHTS_FILE].sha256 for manifest in manifests}
    assert len(weights) > 1
    result = tally(recommendations(stream, len(expected), WITHIN_S), expected)
    assert (result.missing, result.unexpected) == (0, 0)
