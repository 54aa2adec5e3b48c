import hashlib
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Offset, Partition, Version
from service.errors import DamagedVersionError
from service.registry.manifest import (
    FileRecord,
    GateSummary,
    Manifest,
    Origin,
    decode,
    encode,
)

floats = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=12)
counts = st.integers(0, 2**63)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
gates = st.builds(
    GateSummary,
    verdict=texts,
    rows=counts,
    mean_gain=st.none() | floats,
    margin=st.none() | floats,
    champion_ndcg=st.none() | floats,
    challenger_ndcg=st.none() | floats,
)
records = st.builds(
    FileRecord, sha256=st.text("0123456789abcdef", min_size=64, max_size=64), bytes=counts
)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
manifests = st.builds(
    Manifest,
    version=st.integers(1, 2**63),
    parent=st.none() | st.integers(0, 2**63),
    origin=st.sampled_from(Origin),
    created_at=counts,
    trained_through=st.dictionaries(st.integers(0, 2**31 - 1), counts, max_size=4),
    items=counts,
    model=st.dictionaries(texts, plain, max_size=3),
    gate=st.none() | gates,
    files=st.dictionaries(names, records, max_size=3),
)

EXAMPLE = Manifest(
    version=Version(12),
    parent=Version(11),
    origin=Origin.TRAINED,
    created_at=1_700_000_000_000,
    trained_through={Partition(0): Offset(400), Partition(11): Offset(7)},
    items=1682,
    model={"dim": 64, "backbone": {"kind": "small"}, "name": "modèle"},
    gate=GateSummary(
        verdict="promote",
        rows=512,
        mean_gain=0.012,
        margin=0.004,
        champion_ndcg=0.1,
        challenger_ndcg=0.112,
    ),
    files={"weights.safetensors": FileRecord(sha256="0a" * 32, bytes=4096)},
)


@given(manifests)
def test_reads_back_what_was_written(manifest: Manifest) -> None:
    assert decode(encode(manifest)) == manifest


def test_is_json_that_other_tools_can_read() -> None:
    document = json.loads(encode(EXAMPLE))
    assert document["manifest"]["trained_through"] == {"0": 400, "11": 7}
    assert document["manifest"]["format"] == 1


def test_equal_manifests_have_equal_bytes() -> None:
    turned = EXAMPLE.model_copy(
        update={"trained_through": dict(reversed(EXAMPLE.trained_through.items()))}
    )
    assert encode(turned) == encode(EXAMPLE)


def test_refuses_truncation_at_every_length() -> None:
    data = encode(EXAMPLE)
    for length in range(len(data)):
        with pytest.raises(DamagedVersionError):
            decode(data[:length])


def test_refuses_every_flipped_bit() -> None:
    data = encode(EXAMPLE)
    for at in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[at] ^= 1 << bit
            with pytest.raises(DamagedVersionError):
                decode(bytes(altered))


@given(st.binary(max_size=200))
def test_refuses_bytes_that_were_never_a_manifest(data: bytes) -> None:
    with pytest.raises(DamagedVersionError):
        decode(data)


def test_refuses_bytes_after_the_end() -> None:
    with pytest.raises(DamagedVersionError):
        decode(encode(EXAMPLE) + b"\n")


@pytest.mark.parametrize("change", [{"format": 2}, {"unknown": 1}, {"files": {"../weights": {}}}])
def test_refuses_a_sealed_manifest_of_another_release(change: dict[str, object]) -> None:
    inner = json.loads(encode(EXAMPLE))["manifest"] | change
    body = json.dumps(inner).encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    with pytest.raises(DamagedVersionError, match=next(iter(change))):
        decode(b'{"sha256":"' + digest + b'","manifest":' + body + b"}\n")


def test_figures_that_are_not_finite_become_none() -> None:
    gate = GateSummary(
        verdict="promote",
        rows=0,
        mean_gain=math.nan,
        margin=math.inf,
        champion_ndcg=-math.inf,
        challenger_ndcg=0.5,
    )
    assert (gate.mean_gain, gate.margin, gate.champion_ndcg) == (None, None, None)
    assert gate.challenger_ndcg == 0.5


def test_will_not_write_a_model_section_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(EXAMPLE.model_copy(update={"model": {"dropout": math.nan}}))
