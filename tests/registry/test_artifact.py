import hashlib
from pathlib import Path

import orjson
import pytest
import safetensors.torch
import torch

from service.domain import ItemId
from service.errors import DamagedVersionError, NonFiniteError
from service.registry.artifact import (
    FROZEN_FILE,
    TRAINER_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    Artifact,
    read_artifact,
    verify_files,
    write_artifact,
)
from service.registry.manifest import FileRecord
from tests.registry.examples import a_half_frozen_artifact, an_artifact, flip_a_bit, truncate

FILES = [WEIGHTS_FILE, VOCABULARY_FILE, TRAINER_FILE]
VOCABULARY = (ItemId(""), ItemId("a"))


def of(weights: dict[str, torch.Tensor]) -> Artifact:
    return Artifact(weights, VOCABULARY, {})


def record(data: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    artifact = Artifact(
        weights={
            "items": torch.randn(3, 4),
            "half": torch.randn(2).to(torch.bfloat16),
            "scalar": torch.tensor(0.07),
            "empty": torch.empty(0, 4),
            "mask": torch.tensor([True, False]),
        },
        vocabulary=(ItemId(""), ItemId("ünï \U0001f600"), ItemId("b")),
        trainer={"absent": torch.tensor([torch.nan, 1.0]), "none": torch.empty(0)},
    )
    files = write_artifact(tmp_path, artifact)
    back = read_artifact(tmp_path, files, with_trainer=True)
    assert back.vocabulary == artifact.vocabulary
    for written, read in ((artifact.weights, back.weights), (artifact.trainer, back.trainer)):
        assert written.keys() == read.keys()
        for name, tensor in written.items():
            assert read[name].dtype == tensor.dtype
            torch.testing.assert_close(read[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_writes_views_and_shared_storage(tmp_path: Path) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    weights = {
        "items": table,
        "tied": table,
        "turned": table.T,
        "part": table[1:],
        "first": table[0],
    }
    back = read_artifact(tmp_path, write_artifact(tmp_path, of(weights))).weights
    for name, tensor in weights.items():
        assert torch.equal(back[name], tensor)


def test_read_tensors_can_be_trained_on(tmp_path: Path) -> None:
    back = read_artifact(tmp_path, write_artifact(tmp_path, an_artifact(1.0))).weights
    back["items"].add_(1.0)
    assert back["items"].eq(2.0).all()


def test_what_is_never_trained_has_a_file_of_its_own(tmp_path: Path) -> None:
    artifact = a_half_frozen_artifact()
    files = write_artifact(tmp_path, artifact)
    assert safetensors.torch.load_file(tmp_path / FROZEN_FILE).keys() == {"body"}
    assert "body" not in safetensors.torch.load_file(tmp_path / WEIGHTS_FILE)
    back = read_artifact(tmp_path, files)
    assert back.frozen == {"body"}
    assert back.weights.keys() == artifact.weights.keys()
    assert torch.equal(back.weights["body"], artifact.weights["body"])


def test_serving_leaves_the_trainers_file_alone(tmp_path: Path) -> None:
    files = write_artifact(tmp_path, an_artifact())
    (tmp_path / TRAINER_FILE).unlink()
    assert read_artifact(tmp_path, files).trainer == {}
    with pytest.raises(DamagedVersionError, match=TRAINER_FILE):
        read_artifact(tmp_path, files, with_trainer=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_to_write_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    with pytest.raises(NonFiniteError, match="head"):
        write_artifact(tmp_path, of({"body": torch.ones(2), "head": torch.tensor([0.0, value])}))
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_read_weights_that_are_not_finite(tmp_path: Path) -> None:
    files = write_artifact(tmp_path, an_artifact())
    data = safetensors.torch.save({"head": torch.tensor([torch.nan])})
    (tmp_path / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(DamagedVersionError, match="head is not finite"):
        read_artifact(tmp_path, files | {WEIGHTS_FILE: record(data)})


def test_refuses_to_write_a_vocabulary_without_the_reserved_row(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 0"):
        write_artifact(tmp_path, Artifact({}, (ItemId("a"),), {}))


@pytest.mark.parametrize("ids", [b"{}", b"[]", b'["a"]', b'["",1]', b"[", b"\xff"])
def test_refuses_to_read_a_vocabulary_that_is_none(tmp_path: Path, ids: bytes) -> None:
    files = write_artifact(tmp_path, an_artifact())
    (tmp_path / VOCABULARY_FILE).write_bytes(ids)
    with pytest.raises(DamagedVersionError, match=VOCABULARY_FILE):
        read_artifact(tmp_path, files | {VOCABULARY_FILE: record(ids)})


def test_refuses_weights_that_are_not_safetensors(tmp_path: Path) -> None:
    files = write_artifact(tmp_path, an_artifact())
    data = orjson.dumps({"weights": 1})
    (tmp_path / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(DamagedVersionError, match=WEIGHTS_FILE):
        read_artifact(tmp_path, files | {WEIGHTS_FILE: record(data)})


@pytest.mark.parametrize("name", FILES)
def test_refuses_every_flipped_byte(tmp_path: Path, name: str) -> None:
    files = write_artifact(tmp_path, an_artifact())
    intact = (tmp_path / name).read_bytes()
    for at in range(len(intact)):
        flip_a_bit(tmp_path / name, at)
        with pytest.raises(DamagedVersionError, match=name):
            read_artifact(tmp_path, files, with_trainer=True)
        (tmp_path / name).write_bytes(intact)


@pytest.mark.parametrize("name", FILES)
def test_refuses_a_file_that_is_short_long_or_gone(tmp_path: Path, name: str) -> None:
    files = write_artifact(tmp_path, an_artifact())
    file = tmp_path / name
    intact = file.read_bytes()

    def refused(why: str) -> None:
        with pytest.raises(DamagedVersionError, match=f"{name}.*{why}"):
            read_artifact(tmp_path, files, with_trainer=True)
        with pytest.raises(DamagedVersionError, match=f"{name}.*{why}"):
            verify_files(tmp_path, files)

    truncate(file)
    refused("bytes")
    file.write_bytes(intact + b" ")
    refused("bytes")
    file.unlink()
    refused("cannot be read")
    file.mkdir()
    refused("cannot be read")


def test_refuses_a_file_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    files = write_artifact(tmp_path, an_artifact())
    del files[WEIGHTS_FILE]
    with pytest.raises(DamagedVersionError, match="not in the manifest"):
        read_artifact(tmp_path, files)


def test_what_is_known_of_items_is_served_too(tmp_path: Path) -> None:
    described = {
        "frozen": torch.ones(2, 3, dtype=torch.float16),
        "digests": torch.tensor([[0], [7]]),
    }
    files = write_artifact(tmp_path, Artifact({}, VOCABULARY, {}, described=described))
    back = read_artifact(tmp_path, files).described
    assert torch.equal(back["frozen"], described["frozen"])
    assert torch.equal(back["digests"], described["digests"])


def test_without_descriptions_there_is_no_file_of_them(tmp_path: Path) -> None:
    files = write_artifact(tmp_path, of({"items": torch.ones(2, 2)}))
    assert sorted(files) == sorted(FILES)
    assert not read_artifact(tmp_path, files).described
