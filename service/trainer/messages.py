"""What parent and worker say to each other: frozen, pickled, nothing else is shared.

Parent to worker: `MicroBatch`, `Catalogued`, `Settle`, `Stop`. Worker to parent: the others.
"""

from dataclasses import dataclass

from service.domain import Offsets, Version
from service.state.catalogue import CatalogueItem
from service.trainer.gate import GateReport
from service.trainer.learner import RoundReport
from service.trainer.reranking import ClickReport


@dataclass(frozen=True, slots=True)
class Catalogued:
    """What the catalogue says of some items."""

    items: tuple[CatalogueItem, ...]


@dataclass(frozen=True, slots=True)
class Settle:
    """There is no room for more events: publish something that is trained through those at hand."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End after the step under way."""


@dataclass(frozen=True, slots=True)
class Started:
    """The worker is ready, on top of this version."""

    version: Version
    trained_through: Offsets
    device: str


@dataclass(frozen=True, slots=True)
class Behind:
    """The newest intact version has not learned all that an earlier one had, which is gone or
    damaged. The worker ends: what is missing has to be read again."""

    version: Version
    trained_through: Offsets


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker's process runs. `progress` changes while its work goes on."""

    progress: int
    busy: bool


@dataclass(frozen=True, slots=True)
class RoundDone:
    """A round ended; its micro-batches are off the worker's queue."""

    report: RoundReport


@dataclass(frozen=True, slots=True)
class DescriptionDone:
    """A `Catalogued` is off the worker's queue."""


@dataclass(frozen=True, slots=True)
class Judged:
    """The gate decided."""

    report: GateReport
    skipped: int
    shift: float | None = None  # of the champion's NDCG since it was published
    clicks: ClickReport | None = None  # where a click head is trained


@dataclass(frozen=True, slots=True)
class Settled:
    """So many sequences were given up: the gate did not let them through in time."""

    skipped: int


@dataclass(frozen=True, slots=True)
class Published:
    """A version exists: artifact and manifest are on the storage."""

    version: Version
    trained_through: Offsets
    expired: int = 0  # items that had a row in the one before it, or since, and have none in it


FromWorker = (
    Started | Behind | Heartbeat | RoundDone | DescriptionDone | Judged | Settled | Published
)
