from pathlib import Path

import pytest

from service.domain import Version
from service.errors import ConfigurationError
from service.registry.pin import read_pin, write_pin


def test_nothing_is_pinned_at_first(tmp_path: Path) -> None:
    assert read_pin(tmp_path / "pin.json") is None


def test_a_pin_is_replaced_and_removed(tmp_path: Path) -> None:
    file = tmp_path / "root" / "pin.json"
    write_pin(file, Version(3))
    write_pin(file, Version(4))
    assert read_pin(file) == 4
    write_pin(file, None)
    write_pin(file, None)
    assert read_pin(file) is None
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"{}", b'{"version":"3"}', b'{"version":3', b"\xff"])
def test_a_damaged_pin_is_not_taken_for_none(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "pin.json"
    file.write_bytes(data)
    with pytest.raises(ConfigurationError, match="pin a version again"):
        read_pin(file)


def test_a_pin_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "pin.json").mkdir()
    with pytest.raises(ConfigurationError, match="is a folder"):
        read_pin(tmp_path / "pin.json")
