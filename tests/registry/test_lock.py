import errno
import fcntl
import os
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.registry.lock import only_service
from tests.registry.examples import a_registry, publish
from tests.registry.processes import another_service


def test_a_second_service_is_told_which_folder_is_taken_and_what_to_do(tmp_path: Path) -> None:
    with (
        another_service(tmp_path),
        pytest.raises(ConfigurationError) as refused,
        only_service(tmp_path),
    ):
        pytest.fail("two services hold one registry")
    line = str(refused.value)
    assert str(tmp_path) in line
    assert "stop it" in line
    assert "storage.root" in line
    assert "\n" not in line


def test_kill_9_lets_go_at_once_though_a_child_lives_on(tmp_path: Path) -> None:
    with another_service(tmp_path) as holder:
        holder.kill()
        os.kill(holder.child_pid, 0)  # raises if it is gone
        with only_service(tmp_path):
            pass


def test_it_is_let_go_of_in_order_too(tmp_path: Path) -> None:
    for _ in range(2):
        with only_service(tmp_path):
            pass


def test_a_new_root_is_made(tmp_path: Path) -> None:
    with only_service(tmp_path / "storage" / "registry"):
        pass


def test_a_root_that_is_a_file_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "root").write_bytes(b"")
    refused = pytest.raises(ConfigurationError, match="must be a folder")
    with refused, only_service(tmp_path / "root"):
        pytest.fail("a file cannot hold a registry")


def test_whoever_does_not_serve_publishes_beside_it(tmp_path: Path) -> None:
    with another_service(tmp_path):
        assert publish(a_registry(tmp_path)) == 1
        assert a_registry(tmp_path).rollback(publish(a_registry(tmp_path)), 0).version == 3


def test_a_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(fd: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with only_service(tmp_path):
        assert "nothing keeps a second service from it" in caplog.text
