import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from service.domain import ItemId, Offset, Partition, Version
from service.errors import (
    ConfigurationError,
    DamagedVersionError,
    NonFiniteError,
    TransientError,
)
from service.registry.artifact import TRAINER_FILE, VOCABULARY_FILE, WEIGHTS_FILE, Artifact
from service.registry.folders import VersionFolders
from service.registry.manifest import MANIFEST_FILE, GateSummary, Manifest, Origin
from tests.registry.examples import (
    MODEL,
    NOW_MS,
    a_registry,
    an_artifact,
    file_of,
    flip_a_bit,
    mark_of,
    publish,
    truncate,
)

HOURS_2 = 2 * 3600
SERVED_FILES = [WEIGHTS_FILE, VOCABULARY_FILE, MANIFEST_FILE]


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in (root / "versions").iterdir())


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


class TestPublishing:
    def test_a_new_registry_touches_nothing_and_has_no_version(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path / "new")
        assert registry.versions() == []
        assert registry.load_newest() is None
        assert registry.to_serve() is None
        registry.prune()
        assert list(tmp_path.iterdir()) == []

    def test_loads_what_was_published(self, tmp_path: Path) -> None:
        gate = GateSummary(
            verdict="promote",
            rows=64,
            mean_gain=0.01,
            margin=0.02,
            champion_ndcg=0.1,
            challenger_ndcg=0.11,
        )
        artifact = an_artifact(7.0)
        published = a_registry(tmp_path).publish(
            artifact,
            parent=None,
            origin=Origin.TRAINED,
            trained_through={Partition(3): Offset(99)},
            model=MODEL,
            items=2,
            gate=gate,
            now_ms=NOW_MS,
        )
        manifest, loaded = a_registry(tmp_path).load(published.version, with_trainer=True)
        assert manifest == published
        assert manifest.trained_through == {3: 99}
        assert manifest.model == MODEL
        assert manifest.gate == gate
        assert manifest.created_at == NOW_MS
        assert loaded.vocabulary == artifact.vocabulary
        assert torch.equal(loaded.weights["items"], artifact.weights["items"])
        assert torch.equal(loaded.trainer["moment"], artifact.trainer["moment"])

    def test_numbers_rise_across_registries(self, tmp_path: Path) -> None:
        assert publish(a_registry(tmp_path)) == 1
        assert publish(a_registry(tmp_path), parent=1) == 2
        assert a_registry(tmp_path).versions() == [1, 2]

    def test_a_version_without_a_manifest_does_not_exist_and_keeps_its_number(
        self, tmp_path: Path
    ) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        file_of(tmp_path, 2, "").mkdir()
        assert registry.versions() == [1]
        assert publish(registry) == 3

    def test_weights_that_are_not_finite_leave_nothing(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        broken = Artifact({"head": torch.tensor([torch.inf])}, (ItemId(""),), {})
        with pytest.raises(NonFiniteError):
            registry.publish(
                broken,
                parent=Version(1),
                origin=Origin.TRAINED,
                trained_through={},
                model={},
                items=0,
                gate=None,
                now_ms=NOW_MS,
            )
        assert names(tmp_path) == ["00000001"]

    def test_a_root_that_is_a_file_is_a_configuration_error(self, tmp_path: Path) -> None:
        (tmp_path / "root").write_bytes(b"")
        registry = a_registry(tmp_path / "root")
        with pytest.raises(ConfigurationError, match="must be a folder"):
            publish(registry)


class TestDamage:
    @pytest.mark.parametrize("harm", [flip_a_bit, truncate, Path.unlink])
    @pytest.mark.parametrize("name", SERVED_FILES)
    def test_serves_the_version_before_a_damaged_one(
        self, tmp_path: Path, name: str, harm: Callable[[Path], None]
    ) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0)
        publish(registry, 2.0, parent=1)
        harm(file_of(tmp_path, 2, name))
        with pytest.raises(DamagedVersionError, match="version 2"):
            registry.load(Version(2))
        assert mark_of(registry.load_newest()) == 1.0

    def test_a_damaged_trainer_file_stops_only_the_trainer(self, tmp_path: Path) -> None:
        publish(a_registry(tmp_path), 1.0)
        publish(a_registry(tmp_path), 2.0)
        flip_a_bit(file_of(tmp_path, 2, TRAINER_FILE))
        assert mark_of(a_registry(tmp_path).load_newest()) == 2.0
        assert mark_of(a_registry(tmp_path).load_newest(with_trainer=True)) == 1.0

    def test_each_refusal_is_logged_once_with_its_reason(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        publish(registry)
        flip_a_bit(file_of(tmp_path, 2, WEIGHTS_FILE))
        for _ in range(3):
            registry.load_newest()
        [line] = [record.getMessage() for record in caplog.records]
        assert line.startswith("refused version 2")
        assert "checksum" in line

    def test_nothing_intact_is_none_and_an_error_in_the_log(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        truncate(file_of(tmp_path, 1, MANIFEST_FILE))
        assert registry.load_newest() is None
        assert caplog.records[-1].levelno == logging.ERROR
        assert "no intact version" in caplog.text

    def test_a_copied_folder_is_not_another_version(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0)
        shutil.copytree(file_of(tmp_path, 1, ""), file_of(tmp_path, 2, ""))
        with pytest.raises(DamagedVersionError, match="belongs to version 1"):
            registry.manifest(Version(2))
        assert registry.load_newest() is not None

    def test_a_version_refused_by_its_reader_is_not_offered_again(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0)
        publish(registry, 2.0)
        registry.refuse(Version(2), "its model does not fit its weights")
        assert registry.to_serve() == 1
        assert mark_of(registry.load_newest()) == 1.0

    def test_a_number_given_out_again_is_not_refused_for_its_past(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0)
        publish(registry, 2.0)
        registry.refuse(Version(2), "damaged")
        shutil.rmtree(file_of(tmp_path, 2, ""))
        assert registry.to_serve() == 1
        publish(registry, 3.0)
        assert mark_of(registry.load_newest()) == 3.0


class TestPin:
    def test_the_pin_serves_in_every_registry_until_it_is_removed(self, tmp_path: Path) -> None:
        for mark in (1.0, 2.0, 3.0):
            publish(a_registry(tmp_path), mark)
        reader = a_registry(tmp_path)
        a_registry(tmp_path).pin(Version(2))
        assert reader.pinned() == 2
        assert reader.to_serve() == 2
        a_registry(tmp_path).pin(None)
        assert reader.pinned() is None
        assert reader.to_serve() == 3

    def test_training_goes_on_from_the_newest_whatever_is_pinned(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        for mark in (1.0, 2.0):
            publish(registry, mark)
        registry.pin(Version(1))
        assert mark_of(registry.load_newest()) == 2.0

    def test_a_damaged_pin_target_gives_way_to_the_newest(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        for mark in (1.0, 2.0, 3.0):
            publish(registry, mark)
        registry.pin(Version(1))
        registry.refuse(Version(1), "its weights were altered")
        assert registry.to_serve() == 3

    def test_a_version_that_does_not_exist_cannot_be_pinned(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        with pytest.raises(ConfigurationError, match="no version 9; kept: 1"):
            registry.pin(Version(9))
        assert registry.pinned() is None

    def test_a_pin_that_has_gone_is_logged_once(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        publish(registry)
        registry.pin(Version(1))
        shutil.rmtree(file_of(tmp_path, 1, ""))
        assert registry.to_serve() == 2
        assert registry.to_serve() == 2
        assert [record.getMessage()[:16] for record in caplog.records] == ["pinned version 1"]

    def test_nothing_is_removed_while_the_pin_is_unreadable(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        registry = a_registry(tmp_path, keep_versions=2)
        for _ in range(4):
            publish(registry)
        registry.pin(Version(1))
        truncate(tmp_path / "pin.json")
        registry.prune()
        assert registry.versions() == [1, 2, 3, 4]
        assert "no version is removed" in caplog.text
        registry.pin(Version(1))
        registry.prune()
        assert registry.versions() == [1, 3, 4]

    def test_what_is_pinned_while_others_are_looked_at_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The newest version's files are read before any is removed: that may take long."""
        registry = a_registry(tmp_path, keep_versions=2)
        for _ in range(4):
            publish(registry)
        newest_intact = registry._newest_intact

        def slowly(versions: Sequence[Version]) -> Version | None:
            a_registry(tmp_path).pin(Version(1))
            return newest_intact(versions)

        monkeypatch.setattr(registry, "_newest_intact", slowly)
        registry.prune()
        assert registry.versions() == [1, 3, 4]

    def test_a_version_that_goes_while_it_is_pinned_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        publish(registry)
        manifest = registry.manifest

        def then_it_goes(version: Version) -> Manifest:
            found = manifest(version)
            shutil.rmtree(file_of(tmp_path, 1, ""))
            return found

        monkeypatch.setattr(registry, "manifest", then_it_goes)
        a_registry(tmp_path).pin(Version(2))
        with pytest.raises(ConfigurationError, match="no version 1; kept: 2"):
            registry.pin(Version(1))
        assert registry.pinned() == 2


class TestRollback:
    def test_knows_what_was_published_while_it_read_the_old_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0, offset=10)
        publish(registry, 2.0, parent=1, offset=20)
        load = registry.load

        def slowly(version: Version, *, with_trainer: bool) -> tuple[Manifest, Artifact]:
            publish(a_registry(tmp_path), 3.0, parent=2, offset=30)
            return load(version, with_trainer=with_trainer)

        monkeypatch.setattr(registry, "load", slowly)
        made = registry.rollback(None, NOW_MS)
        assert (made.version, made.parent, made.trained_through) == (4, 1, {0: 30})

    def test_publishes_the_old_files_with_the_newest_offsets(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0, offset=10)
        publish(registry, 2.0, parent=1, offset=20)
        publish(registry, 3.0, parent=2, offset=30)
        manifest = registry.rollback(Version(1), NOW_MS + 5)
        assert manifest.version == 4
        assert manifest.parent == 1
        assert manifest.origin is Origin.ROLLBACK
        assert manifest.trained_through == {0: 30}
        assert manifest.created_at == NOW_MS + 5
        loaded = a_registry(tmp_path).load_newest(with_trainer=True)
        assert loaded is not None
        assert loaded[0] == manifest
        assert mark_of(loaded) == 1.0
        assert float(loaded[1].trainer["moment"][0, 0]) == -1.0

    def test_without_a_target_goes_one_further_back_each_time(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0)
        publish(registry, 2.0, parent=1)
        publish(registry, 3.0, parent=2)
        assert registry.rollback(None, NOW_MS).parent == 2
        assert registry.rollback(None, NOW_MS).parent == 1
        with pytest.raises(ConfigurationError, match="version 1 is the first"):
            registry.rollback(None, NOW_MS)
        assert mark_of(registry.load_newest()) == 1.0

    def test_outlives_the_version_whose_files_it_has(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path, keep_versions=2)
        publish(registry, 1.0)
        publish(registry, 2.0, parent=1)
        registry.rollback(None, NOW_MS)
        registry.prune()
        assert registry.versions() == [2, 3]
        assert mark_of(registry.load_newest()) == 1.0

    def test_is_the_newest_also_where_a_trainer_was_as_fast(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It has claimed the number behind the rollback's, and seen no manifest there yet."""
        registry = a_registry(tmp_path)
        publish(registry, 1.0, offset=10)
        publish(registry, 2.0, parent=1, offset=20)
        claim = VersionFolders._claim
        trainers: list[Path] = []

        def claim_both(self: VersionFolders, folder: Path) -> tuple[Version, Path]:
            claimed = claim(self, folder)
            if not trainers:
                trainers.append(self.path(Version(4)))
                trainers[0].mkdir()
            return claimed

        monkeypatch.setattr(VersionFolders, "_claim", claim_both)
        manifest = registry.rollback(Version(1), NOW_MS)
        assert manifest.version == 5
        assert mark_of(registry.load_newest()) == 1.0

    def test_gets_past_a_newest_version_that_is_damaged(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0, offset=10)
        publish(registry, 2.0, parent=1, offset=20)
        flip_a_bit(file_of(tmp_path, 2, WEIGHTS_FILE))
        assert registry.rollback(None, NOW_MS).trained_through == {0: 20}
        assert mark_of(registry.load_newest()) == 1.0

    def test_never_publishes_a_damaged_version_again(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry, 1.0)
        publish(registry, 2.0, parent=1)
        flip_a_bit(file_of(tmp_path, 1, TRAINER_FILE))
        with pytest.raises(DamagedVersionError, match="version 1"):
            registry.rollback(Version(1), NOW_MS)
        assert names(tmp_path) == ["00000001", "00000002"]

    def test_says_which_versions_there_are(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        with pytest.raises(ConfigurationError, match="no version under"):
            registry.rollback(None, NOW_MS)
        publish(registry)
        with pytest.raises(ConfigurationError, match="no version 5; kept: 1"):
            registry.rollback(Version(5), NOW_MS)


class TestRetention:
    def test_keeps_the_newest_and_the_pin(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path, keep_versions=2)
        for _ in range(5):
            publish(registry)
        registry.pin(Version(2))
        registry.prune()
        assert registry.versions() == [2, 4, 5]
        assert names(tmp_path) == ["00000002", "00000004", "00000005"]

    @pytest.mark.parametrize("name", [MANIFEST_FILE, WEIGHTS_FILE, TRAINER_FILE])
    def test_keeps_the_version_that_damaged_newer_ones_need(
        self, tmp_path: Path, name: str
    ) -> None:
        registry = a_registry(tmp_path, keep_versions=2)
        for mark in (1.0, 2.0, 3.0, 4.0):
            publish(registry, mark)
        flip_a_bit(file_of(tmp_path, 3, name))
        flip_a_bit(file_of(tmp_path, 4, name))
        registry.prune()
        assert registry.versions() == [2, 3, 4]
        assert mark_of(registry.load_newest(with_trainer=True)) == 2.0

    def test_removes_what_crashes_left_once_it_is_stale(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path)
        publish(registry)
        stale, fresh = (tmp_path / "versions" / f".publish.{name}" for name in "ab")
        claimed, newest_claimed = file_of(tmp_path, 2, ""), file_of(tmp_path, 4, "")
        for folder in (stale, fresh, claimed):
            folder.mkdir()
        assert publish(registry) == 3
        newest_claimed.mkdir()
        for folder in (stale, claimed, newest_claimed):
            age(folder, HOURS_2)
        registry.prune()
        assert names(tmp_path) == [fresh.name, "00000001", "00000003", "00000004"]
        assert publish(registry) == 5

    def test_a_reader_of_a_version_being_pruned_is_told_so(self, tmp_path: Path) -> None:
        registry = a_registry(tmp_path, keep_versions=2)
        for _ in range(3):
            publish(registry)
        registry.prune()
        with pytest.raises(DamagedVersionError, match="version 1"):
            registry.load(Version(1))

    def test_a_version_pruned_while_it_is_loaded_is_not_called_damaged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        registry = a_registry(tmp_path, keep_versions=2)
        publish(registry, 1.0)
        manifest = registry.manifest(Version(1))

        def manifest_then_pruned(version: Version) -> object:
            monkeypatch.undo()
            other = a_registry(tmp_path, keep_versions=2)
            for mark in (2.0, 3.0):
                publish(other, mark)
            other.prune()
            return manifest

        monkeypatch.setattr(registry, "manifest", manifest_then_pruned)
        assert mark_of(registry.load_newest()) == 3.0
        assert caplog.records == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_version_that_cannot_be_read_now_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The pinned one, or that of a rollback, would not serve any more once it can be read."""
    registry = a_registry(tmp_path)
    publish(registry, 1.0)
    publish(registry, 2.0, parent=1)
    monkeypatch.setattr("service.storage.files._READ_AFTER_S", (0.0,))
    with monkeypatch.context() as away:

        def fail(self: Path, mode: str) -> None:
            raise OSError(number, os.strerror(number), str(self))

        away.setattr(Path, "open", fail)
        with pytest.raises(TransientError, match=os.strerror(number)):
            registry.load_newest()
    loaded = registry.load_newest()
    assert loaded is not None
    assert loaded[0].version == 2
