"""Takes partitions up where they were left: histories, memory, popularity, watermarks."""

import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass

from service.domain import Offset, Offsets, Partition
from service.errors import DamagedSnapshotError
from service.metrics import Metrics
from service.model.memory import Memory
from service.model.vocabulary import Vocabulary
from service.registry.artifact import Artifact
from service.registry.registry import Registry
from service.settings import Settings
from service.state.duplicates import Duplicates
from service.state.features import keys_of
from service.state.histories import HistorySlab
from service.state.popularity import Popularity
from service.state.snapshots import Snapshot, Snapshots
from service.stream.source import Assigned, tell_removed
from service.stream.watermarks import Beginning, beginning
from service.trainer.holdout import remind, rows_from_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TakenUp:
    """By partition: where reading, answering, training and applying begin."""

    read_from: Offsets
    answer_from: Offsets
    train_from: Offsets
    applied: Offsets
    trained: Offsets  # of the newest intact version, as far as it counts
    # What that version says beyond the partitions' ends: it is of another topic of the same name.
    void: Offsets


class Taker:
    """Fills what is empty; blocks on the storage."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        snapshots: Snapshots,
        popularity: Popularity,
        memory: Memory | None,
        duplicates: Duplicates,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._snapshots = snapshots
        self._popularity = popularity
        self._memory = memory
        self._duplicates = duplicates

    def take_up(
        self,
        assigned: list[Assigned],
        slabs: Mapping[Partition, HistorySlab],
        kept: Container[Partition],
    ) -> TakenUp:
        """Restore the slabs and windows of event_ids, but for those that were `kept`, the memory
        and the counts, and say where to go on."""
        settings = self._settings
        self._popularity.clear()
        self._duplicates.own([one.partition for one in assigned], kept)
        self._duplicates.cut({one.partition: one.end for one in assigned})
        if self._memory is not None:
            self._memory.clear()
        names, trained = self._remember()
        begun: dict[Partition, Beginning] = {}
        for one in assigned:
            slab = slabs[one.partition]
            found_at, committed = "where they were", one.committed
            if one.partition not in kept:
                snapshot = self._snapshots.restore(slab, one.end)
                damaged = self._snapshots.damaged(one.partition)
                self._metrics.snapshots_damaged.labels(one.partition).set(damaged)
                found_at = f"in snapshot {snapshot.name}" if snapshot else "in no snapshot"
                if snapshot is not None:
                    self._see(snapshot)
                    # Kafka forgets what a group has committed a week after its last member.
                    committed = snapshot.manifest.answered if committed is None else committed
            begun[one.partition] = found = beginning(
                one.start,
                one.end,
                committed=committed,
                applied=slab.applied,
                trained=trained.get(one.partition, Offset(0)),
                scores=settings.scores,
                trains=settings.trains,
                remembers=self._memory is not None,
            )
            self._tell(one.partition, found)
            log.info(
                "partition %d: %d users found %s, reading from offset %d",
                one.partition,
                slab.used,
                found_at,
                found.read_from,
            )
        self._count(slabs, names)
        owned = {one.partition: trained.get(one.partition, Offset(0)) for one in assigned}
        ends = {one.partition: one.end for one in assigned}
        void = {one: offset for one, offset in owned.items() if offset > ends[one]}
        return TakenUp(
            read_from={one: at.read_from for one, at in begun.items()},
            answer_from={one: at.answer_from for one, at in begun.items()},
            train_from={one: at.train_from for one, at in begun.items()},
            applied={
                one: Offset(max(at.read_from, slabs[one].applied)) for one, at in begun.items()
            },
            trained={one: at for one, at in owned.items() if one not in void},
            void=void,
        )

    def _see(self, snapshot: Snapshot) -> None:
        """Go on from the event_ids that came before it. Without them histories are whole, and what
        repeats an event from before counts once more."""
        try:
            seen = self._snapshots.seen(snapshot)
        except DamagedSnapshotError as error:
            log.error("snapshot %s: %s", snapshot.name, error)
            return
        if seen is not None:
            self._duplicates.load(snapshot.manifest.partition, seen)

    def _remember(self) -> tuple[Vocabulary, Offsets]:
        """Take the newest version's memory; its vocabulary, and up to where it was trained."""
        # A registry of its own: a version with a damaged trainer state still serves.
        settings = self._settings
        registry = Registry.of(settings)
        newest = registry.load_newest(with_trainer=True)
        if newest is None:
            return Vocabulary(()), {}
        manifest, artifact = newest
        vocabulary = Vocabulary(artifact.vocabulary)
        if self._memory is not None:
            self._memory.load(artifact.trainer, vocabulary)
            self._teach_held_out(self._memory, artifact, vocabulary)
        topic = settings.topics.events
        through = manifest.through(topic)
        if through != manifest.trained_through:
            log.warning(
                "version %d was trained on topic %r: all that there is of topic %r is taught",
                manifest.version,
                manifest.topic,
                topic,
            )
        return vocabulary, through

    def _teach_held_out(self, memory: Memory, artifact: Artifact, vocabulary: Vocabulary) -> None:
        """The worker's memory does not know what is held out; the scorer's does."""
        model = self._settings.model
        held = rows_from_tensors(dict(artifact.trainer), model.max_length, keys_of(model.context))
        remind(memory, held, vocabulary)

    def _count(self, slabs: Mapping[Partition, HistorySlab], names: Vocabulary) -> None:
        """What the restored histories tell of popularity, one partition after the other."""
        events = 10 * self._settings.scorer.popularity_half_life_events
        for slab in slabs.values():
            rows = names.rows(slab.latest(events))
            self._popularity.learn(names.ids[row] for row in rows[rows > 0].tolist())

    def _tell(self, partition: Partition, found: Beginning) -> None:
        """Of what retention removed too early."""
        self._metrics.offsets_lost.inc(found.lost)
        self._metrics.offsets_untaught.inc(found.untaught)
        for lost, what in (
            (found.lost, "answered"),
            (found.untaught, "trained on"),
            (found.unapplied, "in the histories of the snapshot"),
        ):
            if lost:
                tell_removed(lost, partition, what)
