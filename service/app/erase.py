"""`headwater erase`: has the service forget a user, and says what stays and until when."""

import time
from collections.abc import Mapping
from contextlib import aclosing

from service.app.snapshotter import ERASED_REST, ERASED_WITHIN_S
from service.domain import Offsets, UserId
from service.errors import TransientError
from service.settings import Settings
from service.stream.codec import encode_erasure
from service.stream.erasing import append_to_all, committed, retention_ms
from service.stream.topics import require_topics

_ASK_EVERY_S = 0.5
_DAY_MS = 86_400_000


async def erase(settings: Settings, user_id: UserId, wait_s: float | None) -> None:
    """Send the erasure; with `wait_s`, wait so long until the service has answered it.

    Raises TransientError where it has not by then, ConfigurationError and TransientError where
    Kafka does not take it.
    """
    record = encode_erasure(settings.events, user_id, time.time_ns() // 1_000_000)
    topics = settings.topics
    await require_topics(settings.kafka, topics)
    through = await append_to_all(settings.kafka, topics.events, user_id.encode(), record)
    if wait_s is not None:
        await _wait(settings, through, wait_s)
    names = (topics.events, topics.recommendations, topics.dead_letter)
    kept_ms = await retention_ms(settings.kafka, names)
    said = [
        f"sent to {len(through)} partitions of topic {topics.events!r}; the service forgets the "
        "user's history and held-out rows when it reads it, and trains on no event from before, "
        "unless it crashes and reads some of them again first"
        if wait_s is None
        else "the service has forgotten the user's history, and ended the recommendations with a "
        f"tombstone in {topics.recommendations!r}",
        "what stays, and until when:",
        *(f"- {line}" for line in what_stays(settings, through, kept_ms)),
    ]
    print("\n".join(said))  # noqa: T201  # this command's output


async def _wait(settings: Settings, through: Offsets, wait_s: float) -> None:
    """Until who answers has read it, and who only trains, if there ever was one."""
    groups = (settings.kafka.group_id, settings.training_group)
    end_s = time.monotonic() + wait_s
    looks = committed(settings.kafka, settings.topics.events, groups, _ASK_EVERY_S)
    async with aclosing(looks):
        async for found in looks:
            late = behind(found, through, settings.kafka.group_id)
            if not late:
                return
            if time.monotonic() > end_s:
                raise TransientError(
                    f"sent, but not read within {wait_s:g} s by group {' and '.join(late)}: "
                    "it will be when `headwater serve` reads it"
                )


def behind(found: Mapping[str, Offsets], through: Offsets, group: str) -> list[str]:
    """The groups that have not committed all records before the offsets `through`; of those that
    have committed none `group` alone is waited for."""
    return [
        name
        for name, offsets in found.items()
        if (offsets or name == group)
        and any(offsets.get(partition, 0) < offset for partition, offset in through.items())
    ]


def what_stays(settings: Settings, through: Offsets, kept_ms: dict[str, int]) -> list[str]:
    """Of a user who was erased before the offsets `through`. `kept_ms` is the retention by topic,
    as far as Kafka told."""
    topics = settings.topics
    past = ", ".join(f"{partition}: {offset}" for partition, offset in sorted(through.items()))
    lines = [
        "weights: what they have learned from the user is not stored by user, cannot be taken out, "
        "and fades as later events are learned; only a registry that begins anew is without it",
        "popularity: how often items were met lately, by nobody in particular; it halves every "
        f"{settings.scorer.popularity_half_life_events:,} events "
        "(scorer.popularity_half_life_events)",
    ]
    if settings.memory.enabled:
        lines.append(
            "the memory: counts of which item followed which, of nobody in particular; they halve "
            f"every {settings.memory.half_life_events:,} events (memory.half_life_events)"
        )
    if settings.click.enabled:
        lines.append(
            "the click head: counts of items' events and labels, of nobody in particular; they "
            f"halve every {settings.click.half_life_events:,} events (click.half_life_events)"
        )
    lines += [
        f"versions whose trained_through is not yet at {past}, or whose topic is another: held-out "
        f"rows, until {settings.registry.keep_versions} newer ones are published "
        "(registry.keep_versions); in a pinned one until it is unpinned. After a rollback to one "
        "of them, erase again",
        _of_snapshots(settings),
        *_of_event_ids(settings.events.deduplicate),
        f"topic {topics.events!r}: the user's events, and the erasure, "
        f"{_until(topics.events, kept_ms)}",
        f"topic {topics.recommendations!r}: earlier recommendations, until compaction or "
        f"{_until(topics.recommendations, kept_ms)}",
        f"topic {topics.dead_letter!r}: records of the user that were no events, "
        f"{_until(topics.dead_letter, kept_ms)}",
    ]
    return lines


def _of_snapshots(settings: Settings) -> str:
    if settings.storage.snapshot_every_s is None:
        return (
            "state snapshots: none is written (storage.snapshot_every_s); older ones under "
            f"{settings.storage.snapshots_url} stay until you remove them"
        )
    return (
        f"state snapshots: until the next one, which a running service begins within "
        f"{ERASED_WITHIN_S:g} s, or {ERASED_REST} times as long after the last one as that took"
    )


def _of_event_ids(window: int) -> list[str]:
    if not window:
        return []
    return [
        "hashes of event_ids, in memory and state snapshots, by which repeats are told: until "
        f"{window:,} more offsets have been read (events.deduplicate)"
    ]


def _until(topic: str, kept_ms: dict[str, int]) -> str:
    if topic not in kept_ms:
        return "until its retention removes them"
    if kept_ms[topic] < 0:
        return "for ever, as its retention.ms says"
    return f"for {kept_ms[topic] / _DAY_MS:g} days (its retention.ms)"
