import errno
import os
from pathlib import Path

import pytest

from service.errors import ConfigurationError, TransientError
from service.storage import files


def test_a_failed_replace_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    files.replace_synced(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace_synced(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_copies_where_the_file_system_has_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    files.link_or_copy(source, target)
    assert target.read_bytes() == b"content"
    assert target.stat().st_ino != source.stat().st_ino


def test_removing_a_folder_that_is_gone_does_nothing(tmp_path: Path) -> None:
    files.remove_folder(tmp_path / "gone")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, TransientError),
        (errno.EDQUOT, TransientError),
        (errno.EACCES, ConfigurationError),
        (errno.EROFS, ConfigurationError),
        (errno.ESTALE, TransientError),
        (errno.ETIMEDOUT, TransientError),
        (errno.EMFILE, OSError),
    ],
)
def test_storage_faults_route(tmp_path: Path, number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected), files.storage_faults(tmp_path):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("number", "asked"), [(errno.ESTALE, 3), (errno.ENOENT, 1), (errno.EACCES, 1)]
)
def test_only_storage_that_is_away_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, number: int, asked: int
) -> None:
    monkeypatch.setattr(files, "_READ_AFTER_S", (0.0, 0.0))
    times = 0

    def read() -> None:
        nonlocal times
        times += 1
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)):
        files.patiently(read)
    assert times == asked


def test_storage_that_comes_back_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_READ_AFTER_S", (0.0, 0.0))
    faults = [OSError(errno.ESTALE, "away"), OSError(errno.EIO, "away")]

    def read() -> bytes:
        if faults:
            raise faults.pop()
        return b"content"

    assert files.patiently(read) == b"content"


def test_what_the_storage_does_not_tell_is_not_taken_for_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert files.exists(tmp_path)
    assert not files.exists(tmp_path / "missing")
    (tmp_path / "file").touch()
    assert not files.exists(tmp_path / "file" / "below")

    def fail(self: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        files.exists(tmp_path)
