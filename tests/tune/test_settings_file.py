from pathlib import Path

from service.settings import GruBackbone, Settings, load_settings
from service.tune.settings_file import write_settings
from service.tune.space import with_values

CHANGES = {"trainer.learning_rate": 0.002, "trainer.replay.ratio": 1.5, "memory.lag_decay": 0.5}


def test_the_file_holds_the_changes_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "tuned.toml"
    write_settings(file, None, CHANGES, ["better by\nfar"])
    assert file.read_text().startswith("# better by\n# far\n\n[trainer]\nlearning_rate = 0.002\n")
    assert load_settings(file, {}) == with_values(Settings(), CHANGES)


def test_the_given_file_is_taken_over(tmp_path: Path) -> None:
    config = tmp_path / "headwater.toml"
    config.write_text(
        '[kafka]\nsasl_password = "s\\u00fc\\"\\\\"\n[events]\nkinds = ["view"]\n'
        "[trainer]\nlearning_rate = 0.1\nmax_epochs = 1\n"
    )
    file = tmp_path / "tuned.toml"
    write_settings(file, config, CHANGES, [])
    assert load_settings(file, {}) == with_values(load_settings(config, {}), CHANGES)


def test_a_choice_names_its_kind(tmp_path: Path) -> None:
    file, config = tmp_path / "tuned.toml", tmp_path / "headwater.toml"
    write_settings(file, None, {"model.backbone.layers": 3}, [])
    assert load_settings(file, {}) == with_values(Settings(), {"model.backbone.layers": 3})
    config.write_text('[model.backbone]\nkind = "gru"\n')
    write_settings(file, config, CHANGES, [])
    assert isinstance(load_settings(file, {}).model.backbone, GruBackbone)


def test_what_only_some_may_read_stays_so(tmp_path: Path) -> None:
    config, file = tmp_path / "headwater.toml", tmp_path / "tuned.toml"
    config.touch(mode=0o600)
    write_settings(file, config, CHANGES, [])
    assert file.stat().st_mode & 0o777 == 0o600
