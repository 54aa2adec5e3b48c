"""What a version is made of, and its files.

Tensors are safetensors and the vocabulary is JSON: reading a version never runs code
from it, as unpickling would. A file is parsed only after its size and checksum were
found to be the manifest's.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import safetensors.torch
import torch
from safetensors import SafetensorError

from service.domain import ItemId
from service.errors import DamagedVersionError, NonFiniteError
from service.model.precision import all_finite
from service.registry.manifest import FileRecord
from service.registry.reading import read_file
from service.storage.files import write_synced

WEIGHTS_FILE = "weights.safetensors"
FROZEN_FILE = "frozen.safetensors"  # only where something is
VOCABULARY_FILE = "vocabulary.json"
TRAINER_FILE = "trainer.safetensors"
DESCRIBED_FILE = "described.safetensors"  # only where items are described

NO_ITEM = ItemId("")  # in the vocabulary: no item has this row


_NONE: Mapping[str, FileRecord] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """The content of one version. Tensors are on the CPU once read."""

    weights: Mapping[str, torch.Tensor]
    vocabulary: tuple[ItemId, ...]  # item id by row; row 0 is reserved and `NO_ITEM`
    # The learner's own state: optimizer moments, holdout rows. Only a restarted trainer
    # reads it; empty where it was not asked for. Its values may be NaN, an absent value is.
    trainer: Mapping[str, torch.Tensor]
    # Names of the weights that are never trained. They have a file of their own, which later
    # versions link to instead of writing them again.
    frozen: frozenset[str] = frozenset()
    # Of a model with an item tower: the frozen vectors of its rows, and digests of their origin.
    described: Mapping[str, torch.Tensor] = field(default_factory=dict)


def write_artifact(
    folder: Path, artifact: Artifact, present: Mapping[str, FileRecord] = _NONE
) -> dict[str, FileRecord]:
    """Writes the files into `folder`, each synced; the caller syncs the folder. Those that are
    `present` there already are left as they are.

    Tensors may lie on any device, be views and share storage; what shared storage is
    written, and read back, once for each name. Raises `NonFiniteError` before anything
    is written, and ValueError if row 0 of the vocabulary is not reserved.
    """
    unwritten = artifact.frozen if FROZEN_FILE in present else frozenset()
    broken = _non_finite(_but(artifact.weights, unwritten)) or _non_finite(artifact.described)
    if broken is not None:
        raise NonFiniteError(f"refused to publish: {broken} is not finite")
    if artifact.vocabulary[:1] != (NO_ITEM,):
        raise ValueError("row 0 of the vocabulary must be reserved, with the empty id")
    records = dict(present)
    names = [WEIGHTS_FILE, VOCABULARY_FILE, TRAINER_FILE]
    if artifact.frozen and FROZEN_FILE not in present:
        names.append(FROZEN_FILE)
    if artifact.described:
        names.append(DESCRIBED_FILE)
    for name in names:  # one encoded file in memory at a time
        data = _encode(name, artifact)
        write_synced(folder / name, data)
        records[name] = _record(data)
    return records


def read_artifact(
    folder: Path,
    files: Mapping[str, FileRecord],
    frozen: Mapping[str, torch.Tensor] | None = None,
    *,
    with_trainer: bool = False,
) -> Artifact:
    """Reads an artifact back; serving leaves the trainer's file alone. `frozen` is what
    `read_frozen` would give, where the caller has it.

    Raises `DamagedVersionError` if a file is missing, is not what `files` says, or holds
    a weight that is not finite.
    """
    weights = _weights(folder, WEIGHTS_FILE, files)
    if frozen is None:
        frozen = read_frozen(folder, files)
    vocabulary = _vocabulary(folder, files)
    trainer = _tensors(folder, TRAINER_FILE, files) if with_trainer else {}
    described = _tensors(folder, DESCRIBED_FILE, files) if DESCRIBED_FILE in files else {}
    return Artifact({**weights, **frozen}, vocabulary, trainer, frozenset(frozen), described)


def read_frozen(folder: Path, files: Mapping[str, FileRecord]) -> dict[str, torch.Tensor]:
    """The weights that are never trained; none where all are. Raises as `read_artifact` does."""
    return _weights(folder, FROZEN_FILE, files) if FROZEN_FILE in files else {}


def verify_files(folder: Path, files: Mapping[str, FileRecord]) -> None:
    """Reads every file, parses none. Raises `DamagedVersionError` at the first that differs."""
    for name in files:
        _read(folder, name, files)


def _encode(name: str, artifact: Artifact) -> bytes:
    if name == VOCABULARY_FILE:
        return orjson.dumps(artifact.vocabulary)
    tensors = {
        WEIGHTS_FILE: _but(artifact.weights, artifact.frozen),
        FROZEN_FILE: {key: artifact.weights[key] for key in sorted(artifact.frozen)},
        TRAINER_FILE: artifact.trainer,
        DESCRIBED_FILE: artifact.described,
    }
    return safetensors.torch.save(_plain(tensors[name]))


def _but(tensors: Mapping[str, torch.Tensor], left_out: frozenset[str]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}


def _plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors on the CPU, no two on one storage: what safetensors can write."""
    plain: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()
        storages.add(own.untyped_storage().data_ptr())
        plain[name] = own
    return plain


def _non_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The name of a tensor that holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            return name
    return None


def _record(data: bytes) -> FileRecord:
    return FileRecord(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def _read(folder: Path, name: str, files: Mapping[str, FileRecord]) -> bytes:
    record = files.get(name)
    if record is None:
        raise DamagedVersionError(f"{name} is not in the manifest")
    # One byte more than it should have, however large the file has become.
    data = read_file(folder / name, record.bytes + 1)
    if len(data) != record.bytes:
        raise DamagedVersionError(
            f"{name} does not have the {record.bytes} bytes it was written with"
        )
    if _record(data) != record:
        raise DamagedVersionError(f"{name} was altered: its checksum is wrong")
    return data


def _weights(folder: Path, name: str, files: Mapping[str, FileRecord]) -> dict[str, torch.Tensor]:
    weights = _tensors(folder, name, files)
    broken = _non_finite(weights)
    if broken is not None:
        raise DamagedVersionError(f"{name}: {broken} is not finite")
    return weights


def _tensors(folder: Path, name: str, files: Mapping[str, FileRecord]) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(_read(folder, name, files))
    except SafetensorError as error:
        raise DamagedVersionError(f"{name} is not a safetensors file: {error}") from error


def _vocabulary(folder: Path, files: Mapping[str, FileRecord]) -> tuple[ItemId, ...]:
    try:
        ids = orjson.loads(_read(folder, VOCABULARY_FILE, files))
    except orjson.JSONDecodeError as error:
        raise DamagedVersionError(f"{VOCABULARY_FILE} is not JSON: {error}") from error
    if not isinstance(ids, list) or ids[:1] != [NO_ITEM]:
        raise DamagedVersionError(f"{VOCABULARY_FILE} is not a list that starts with the empty id")
    if not all(isinstance(item_id, str) for item_id in ids):
        raise DamagedVersionError(f"{VOCABULARY_FILE} holds something that is not an id")
    return tuple(ids)
