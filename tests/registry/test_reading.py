import errno
import os
from pathlib import Path

import pytest

from service.errors import DamagedVersionError
from service.registry.reading import read_file


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOENT, DamagedVersionError), (errno.EIO, OSError), (errno.EMFILE, OSError)],
)
def test_only_a_file_that_is_gone_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[Exception]
) -> None:
    def fail(self: Path, mode: str) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", fail)
    monkeypatch.setattr("service.storage.files._READ_AFTER_S", (0.0,))
    with pytest.raises(expected):
        read_file(tmp_path / "file", 10)
