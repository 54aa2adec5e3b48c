"""The same on a local disk and in an object store."""

import errno
import os
import uuid
from pathlib import Path

import pytest

from service.errors import ConfigurationError, TransientError
from service.storage.store import Store


@pytest.fixture(params=["disk", "object store"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root") if request.param == "disk" else f"memory://{uuid.uuid4()}")


def test_gives_back_what_was_written(store: Store) -> None:
    store.write(b"old", "a", "b", "file")
    store.write(b"new", "a", "b", "file")
    assert store.read("a", "b", "file") == b"new"
    with pytest.raises(FileNotFoundError):
        store.read("a", "b", "other")


def test_lists_folders_and_nothing_else(store: Store) -> None:
    assert store.folders("a") == []
    store.write(b"", "a", "2", "file")
    store.write(b"", "a", "1", "file")
    store.write(b"", "a", "file")
    store.write(b"", "a", ".removed", "file")
    assert store.folders("a") == ["1", "2"]


def test_removes_a_folder_whole_and_one_that_is_gone(store: Store) -> None:
    store.write(b"", "a", "1", "file")
    store.write(b"", "a", "2", "file")
    store.remove("a", "1")
    store.remove("a", "1")
    store.remove("b", "1")
    assert store.folders("a") == ["2"]


def test_a_full_disk_is_told_and_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    store.write(b"old", "file")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransientError, match="disk is full"):
        store.write(b"new", "file")
    assert store.read("file") == b"old"


def test_refuses_storage_of_which_nothing_installed_knows() -> None:
    with pytest.raises(ConfigurationError, match="nosuch://bucket"):
        Store("nosuch://bucket")
