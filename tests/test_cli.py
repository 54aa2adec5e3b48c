"""The command line: exit codes, what is printed, and one line for whatever is wrong."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import __version__
from service.cli import main
from service.domain import Version
from service.registry.registry import Registry
from tests.registry.examples import a_registry, file_of, publish, truncate
from tests.registry.processes import another_service


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the developer's settings, a storage root of its own, logging as it was."""
    for name in [name for name in os.environ if name.startswith("HEADWATER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HEADWATER_STORAGE__ROOT", str(tmp_path))
    root, ours = logging.getLogger(), logging.getLogger("service")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Versions 1 and 2, the second trained on top of the first."""
    registry = a_registry(tmp_path / "registry")
    publish(registry, 1.0)
    publish(registry, 2.0, parent=1, offset=10)
    return registry


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The one line on standard error."""
    assert main(arguments) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("headwater: ")
    assert told.err.count("\n") == 1
    return told.err


class TestConfig:
    def test_it_prints_the_effective_tree_as_json(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("HEADWATER_SCORER__TOP_K", "7")
        assert main(["config", "--bootstrap", "kafka:9"]) == 0
        tree = json.loads(capsys.readouterr().out)
        assert tree["scorer"]["top_k"] == 7
        assert tree["kafka"]["bootstrap_servers"] == "kafka:9"

    def test_an_empty_address_is_not_taken_for_none(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = refused(capsys, "config", "--bootstrap", "")
        assert "setting kafka.bootstrap_servers: is empty" in line

    def test_it_masks_secrets(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADWATER_KAFKA__SASL_PASSWORD", "opensesame")
        assert main(["config"]) == 0
        assert "opensesame" not in capsys.readouterr().out

    def test_the_file_named_on_the_command_line_wins_over_the_environments(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (tmp_path / "a.toml").write_text("[scorer]\ntop_k = 3\n")
        monkeypatch.setenv("HEADWATER_CONFIG", str(tmp_path / "b.toml"))
        assert main(["config", "--config", str(tmp_path / "a.toml")]) == 0
        assert json.loads(capsys.readouterr().out)["scorer"]["top_k"] == 3

    def test_an_unknown_setting_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADWATER_SCORER__TOP_N", "7")
        assert "unknown setting scorer.top_n" in refused(capsys, "config")

    def test_a_missing_file_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "cannot read settings file" in refused(capsys, "config", "--config", "none.toml")


class TestRegistry:
    @pytest.mark.usefixtures("registry")
    def test_list_shows_every_version_and_which_one_serves(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["registry", "list"]) == 0
        head, first, second = capsys.readouterr().out.splitlines()
        assert head.split() == [
            "version",
            "published",
            "(UTC)",
            "origin",
            "parent",
            "items",
            "ndcg@10",
        ]
        assert first.split() == ["1", "2023-11-14", "22:13:20", "initial", "-", "2", "-"]
        assert second.split()[3:] == ["trained", "1", "2", "-", "serves"]

    def test_list_shows_a_damaged_version_as_such(
        self, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        truncate(file_of(tmp_path / "registry", registry.versions()[-1], "manifest.json"))
        assert main(["registry", "list"]) == 0
        assert "2  damaged: " in capsys.readouterr().out

    def test_an_empty_registry_is_a_heading(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["registry", "list"]) == 0
        assert capsys.readouterr().out.count("\n") == 1

    @pytest.mark.usefixtures("registry")
    def test_show_prints_the_manifest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["registry", "show", "2"]) == 0
        manifest = json.loads(capsys.readouterr().out)
        assert (manifest["version"], manifest["trained_through"]) == (2, {"0": 10})

    def test_show_of_a_damaged_version_is_one_line_and_exit_code_1(
        self, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        truncate(file_of(tmp_path / "registry", registry.versions()[-1], "manifest.json"))
        assert "version 2" in refused(capsys, "registry", "show", "2", code=1)

    def test_rollback_publishes_the_one_before_again(
        self, registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["registry", "rollback"]) == 0
        assert capsys.readouterr().out == "version 3 is version 1 again\n"
        assert registry.versions() == [1, 2, 3]

    def test_a_pin_holds_until_it_is_undone(
        self, registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["registry", "pin", "1"]) == 0
        assert registry.to_serve() == 1
        assert main(["registry", "rollback"]) == 0
        assert "version 1 is pinned and goes on serving" in capsys.readouterr().out
        assert main(["registry", "unpin"]) == 0
        assert registry.to_serve() == 3

    @pytest.mark.usefixtures("registry")
    @pytest.mark.parametrize("action", ["show", "pin", "rollback"])
    def test_an_unknown_version_is_one_line_that_names_the_kept_ones(
        self, action: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        line = refused(capsys, "registry", action, "9")
        assert "there is no version 9; kept: 1, 2" in line

    @pytest.mark.usefixtures("registry")
    def test_list_shows_the_versions_beside_an_unreadable_pin(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "registry" / "pin.json").write_text("{")
        assert main(["registry", "list"]) == 0
        told = capsys.readouterr()
        assert [line.split()[0] for line in told.out.splitlines()] == ["version", "1", "2"]
        assert "serves" not in told.out
        assert "pin a version again" in told.err
        assert main(["registry", "pin", "1"]) == 0
        assert main(["registry", "list"]) == 0
        assert "serves pinned" in capsys.readouterr().out

    def test_nothing_is_rolled_back_beside_an_unreadable_pin(
        self, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "registry" / "pin.json").write_text("{")
        assert "pin a version again" in refused(capsys, "registry", "rollback")
        assert registry.versions() == [1, 2]

    @pytest.mark.parametrize("action", ["list", "show 2", "rollback", "pin 1", "unpin"])
    @pytest.mark.usefixtures("registry")
    def test_every_action_works_beside_a_service(self, action: str, tmp_path: Path) -> None:
        with another_service(tmp_path / "registry"):
            assert main(["registry", *action.split()]) == 0

    def test_a_pinned_version_is_marked(
        self, registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        registry.pin(Version(1))
        assert main(["registry", "list"]) == 0
        assert capsys.readouterr().out.splitlines()[1].endswith("serves pinned")


class TestBacktest:
    def test_what_does_not_go_together_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "name one FILE of events" in refused(capsys, "backtest")

    def test_a_missing_file_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "cannot read none.csv: No such file" in refused(capsys, "backtest", "none.csv")


class TestTune:
    def test_a_missing_package_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        told = refused(capsys, "tune", "none.csv")
        assert "`headwater tune` needs optuna, not installed here: `pip install '.[tune]'`" in told

    def test_a_settings_file_that_is_there_is_kept(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "mine.toml").touch()
        told = refused(capsys, "tune", "none.csv", "--out", str(tmp_path / "mine.toml"))
        assert "mine.toml is there already" in told

    def test_a_missing_file_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        told = refused(capsys, "tune", "none.csv", "--out", str(tmp_path / "new.toml"))
        assert "cannot read none.csv: No such file" in told


class TestProcess:
    def test_it_says_its_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["--version"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"headwater {__version__}\n"

    @pytest.mark.parametrize("port", ["70000", "-1", "kafka"])
    def test_a_port_that_is_none_is_told(
        self, port: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["sandbox", "--port", port])
        assert ended.value.code == 2
        assert f"argument --port: {port} is not" in capsys.readouterr().err

    def test_a_reader_who_has_enough_gets_no_traceback(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "config"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.close()  # before anything was written
        assert process.stderr is not None
        told = process.stderr.read()
        process.stderr.close()
        assert process.wait(60) == 1
        assert told == b""

    def test_a_second_service_on_a_storage_root_is_one_line_and_exit_code_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with another_service(tmp_path / "registry"):
            line = refused(capsys, "serve", "--bootstrap", "127.0.0.1:1")
        assert f"another `headwater serve` runs on {tmp_path / 'registry'}" in line

    def test_serve_on_a_device_that_is_not_there_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        monkeypatch.setenv("HEADWATER_TRAINER__DEVICE", "cuda")
        monkeypatch.setenv("HEADWATER_ADMIN__PORT", "0")
        monkeypatch.setenv("HEADWATER_LOG__LEVEL", "ERROR")
        line = refused(capsys, "serve", "--bootstrap", "127.0.0.1:1")
        assert "trainer.device = 'cuda', but no CUDA device is usable here" in line

    def test_serve_without_a_kafka_is_one_line_and_exit_code_2(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADWATER_KAFKA__CONNECT_TIMEOUT_S", "0.5")
        monkeypatch.setenv("HEADWATER_ADMIN__PORT", "0")
        monkeypatch.setenv("HEADWATER_LOG__LEVEL", "ERROR")
        assert main(["serve", "--bootstrap", "127.0.0.1:1"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("headwater: no Kafka answers at kafka.bootstrap_servers")


class TestErase:
    def test_what_is_no_user_id_is_refused_before_kafka_is_asked(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "1 to 512 characters" in refused(capsys, "erase", "")
        assert "UTF-8" in refused(capsys, "erase", "\udcff")  # as a shell hands over a broken byte

    def test_without_a_kind_for_it_there_is_no_erasure(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HEADWATER_EVENTS__ERASE", "")
        assert "events.erase" in refused(capsys, "erase", "u1")

    @pytest.mark.parametrize("wait", ["0", "-1", "soon", "nan", "inf"])
    def test_it_waits_a_number_of_seconds(
        self, capsys: pytest.CaptureFixture[str], wait: str
    ) -> None:
        with pytest.raises(SystemExit):
            main(["erase", "u1", "--wait", wait])
        assert "no number of seconds above 0" in capsys.readouterr().err
