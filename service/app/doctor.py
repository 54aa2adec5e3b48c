"""`headwater doctor`: says what `serve` would stumble over, and creates missing topics."""

import asyncio
import logging
import os
import shutil

from service.app.catalogue_feed import require_items_topic
from service.app.serving import chosen_servable
from service.errors import ConfigurationError, TransientError
from service.model.backbone import make_backbone
from service.registry.registry import Registry
from service.settings import Settings
from service.state.histories import require_room
from service.storage.store import Store
from service.stream.connection import has_fast_client
from service.stream.topics import create_topics, missing_topics, partitions_of
from service.tracking.tracker import require_trackers
from service.trainer.device import choose_device
from service.trainer.gate import require_decisions

log = logging.getLogger(__name__)

_LITTLE_SPACE_BYTES = 1_000_000_000
_TRIED = ".doctor"  # a folder that no one takes for a topic's


async def examine(settings: Settings, *, create: bool) -> int:
    """Report on everything; 0 when `serve` can start, else 1. Raises ConfigurationError
    where Kafka does not answer, since nothing else can be told then."""
    created = await create_topics(settings.kafka, settings.topics) if create else []
    missing = await missing_topics(settings.kafka, settings.topics)
    findings = [
        f"ok    Kafka answers at {settings.kafka.bootstrap_servers}",
        *(f"ok    created topic {name}" for name in created),
        *(
            f"FAIL  topic {name} does not exist; `headwater doctor --create` creates it"
            for name in missing
        ),
    ]
    if not missing and not created:
        findings.append("ok    all topics exist")
    if not has_fast_client():
        findings.append("warn  aiokafka's C extension is missing: reading is ten times slower")
    findings += await asyncio.to_thread(_storage, settings)
    partitions = settings.topics.partitions
    if settings.topics.events not in missing:
        partitions = await partitions_of(settings.kafka, settings.topics.events)
    findings += await asyncio.to_thread(_model, settings, partitions)
    print("\n".join(findings))  # noqa: T201  # this command's output
    return int(any(finding.startswith("FAIL") for finding in findings))


def _storage(settings: Settings) -> list[str]:
    root = settings.storage.root
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [f"FAIL  storage.root = {root}: {error}"]
    if not os.access(root, os.W_OK):
        return [f"FAIL  storage.root = {root} is not writable"]
    free = shutil.disk_usage(root).free
    findings = [f"ok    storage at {root}, {free / 1e9:.1f} GB free"]
    if free < _LITTLE_SPACE_BYTES:
        findings.append("warn  little space is left: publishing will fail when it runs out")
    return [*findings, *_snapshots(settings), _version(settings)]


def _snapshots(settings: Settings) -> list[str]:
    """Where they lie elsewhere: whether something can be put there and taken away."""
    url = settings.storage.snapshots
    if url is None:
        return []
    try:
        store = Store(url)
        if settings.storage.snapshot_every_s is None:
            return []
        store.write(b"tried by headwater doctor", _TRIED, "file")
        store.remove(_TRIED)
    # Storage clients raise what they like.
    except Exception as error:  # noqa: BLE001
        return [f"FAIL  storage.snapshots = {url}: {error}"]
    return [f"ok    state snapshots can be written to {url}"]


def _version(settings: Settings) -> str:
    """Loads it as `serve` would, so that damage and changed settings are found out."""
    registry = Registry.of(settings)
    try:
        if not registry.versions():
            return "ok    no version yet; `serve` begins with a new model"
        return f"ok    version {chosen_servable(registry, settings).version} would serve"
    except (OSError, ConfigurationError, TransientError) as error:
        return f"FAIL  {error}"


def _model(settings: Settings, partitions: int) -> list[str]:
    findings = []
    for require in (require_items_topic, require_trackers):
        try:
            require(settings)
        except ConfigurationError as error:
            findings.append(f"FAIL  {error}")
    try:
        backbone = make_backbone(settings.model)
        device = choose_device(settings.trainer.device)
        if settings.trains:
            require_decisions(settings)
        require_room(settings.history, partitions, len(settings.model.context))
    except ConfigurationError as error:
        return [*findings, f"FAIL  {error}"]
    weights = sum(parameter.numel() for parameter in backbone.parameters())
    return [*findings, f"ok    backbone of {weights:,} weights; training would run on {device}"]
