"""The manifest: the file whose presence makes a version exist.

On disk it is one sealed JSON object (`storage/sealed.py`).
"""

import enum
import json
import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.domain import Offset, Partition, Version
from service.errors import DamagedVersionError
from service.storage.sealed import seal, unseal

MANIFEST_FILE = "manifest.json"


class Origin(enum.StrEnum):
    INITIAL = "initial"  # before any event
    TRAINED = "trained"
    SETTLED = "settled"  # its parent's weights: what was learned since did not pass the gate
    ROLLBACK = "rollback"  # the files of an older version, its `parent`


class _Record(BaseModel):
    # "constants": pydantic would turn a NaN in `model` into null; so `encode` gets to refuse it.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class FileRecord(_Record):
    """What a file must be to be read."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# JSON has no infinity, and a gate without enough rows reports an infinite margin.
Finite = Annotated[float | None, BeforeValidator(_finite_or_none)]


class GateSummary(_Record):
    """The decision that let the version through. None stands for a figure that is not finite."""

    verdict: str
    rows: Annotated[int, Field(ge=0)]
    mean_gain: Finite
    margin: Finite
    champion_ndcg: Finite
    challenger_ndcg: Finite


class Taught(_Record):
    """Events of one partition that a version's trainer was given since the parent."""

    partition: Partition
    first: Offset
    next: Offset
    events: Annotated[int, Field(ge=0, description="Of the records in between; others are none.")]


# A name, never a path: files are looked up inside the version's folder only.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Manifest(_Record):
    """One version: where it comes from, what it has learned, what its files must be."""

    format: Literal[1] = 1
    version: Annotated[Version, Field(ge=1)]
    parent: Version | None
    origin: Origin
    created_at: int = Field(description="Epoch milliseconds.")
    trained_through: dict[Partition, Offset] = Field(
        description="Per partition, the first offset whose event is not yet in the weights."
    )
    topic: str | None = Field(
        default=None, description="Of these offsets; None where an earlier release did not say."
    )
    items: Annotated[int, Field(ge=0, description="Rows of the item table that hold an item.")]
    model: dict[str, Any] = Field(
        description="The model settings as plain JSON data: rebuilds the version without them."
    )
    gate: GateSummary | None = Field(description="None where no gate was asked.")
    taught: tuple[Taught, ...] = Field(
        default=(),
        description="In the order of learning. Those of a version and its ancestors tile the log: "
        "an overlap was taught twice, a gap holds no event or was missed. A settled version's were "
        "given up.",
    )
    given_up: Annotated[
        int,
        Field(
            ge=0,
            description="Sequences since the parent that are in no weights: they were rejected too "
            "often, or waited when the version was settled. Not what a rollback leaves behind.",
        ),
    ] = 0
    files: dict[FileName, FileRecord]

    def through(self, topic: str) -> dict[Partition, Offset]:
        """`trained_through`, as far as it is of this topic: offsets of another mean nothing."""
        return dict(self.trained_through) if self.topic in (None, topic) else {}


def encode(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`. Raises ValueError if `model` is not plain, finite JSON data."""
    body = json.dumps(
        manifest.model_dump(mode="json"),
        allow_nan=False,
        ensure_ascii=False,
        separators=(",", ":"),
        sort_keys=True,
    )
    return seal(body.encode())


def decode(data: bytes) -> Manifest:
    """The manifest in `data`. Raises `DamagedVersionError` for anything `encode` did not write."""
    try:
        body = unseal(data)
    except ValueError as error:
        raise DamagedVersionError(f"the manifest {error}") from None
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise DamagedVersionError(
            f"the manifest was not written by this release of Headwater: {field}: {first['msg']}"
        ) from error
