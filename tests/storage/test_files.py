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
        (errno.EMFILE, OSError),
    ],
)
def test_storage_faults_route(tmp_path: Path, number: int, expected: type[Exception]) -> None:
    with pytest.raises(expected), files.storage_faults(tmp_path):
        raise OSError(number, os.strerror(number))
