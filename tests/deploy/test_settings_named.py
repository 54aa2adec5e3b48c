"""The settings that the image and the compose file name exist, and fit what is around them."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from service.settings import load_settings
from service.state.histories import slab_bytes

ROOT = Path(__file__).parents[2]
NAME = r"HEADWATER_[A-Z0-9_]+"
FILES = ("Dockerfile", "docker-compose.yml")


def text(file: str) -> str:
    return ROOT.joinpath(file).read_text(encoding="utf-8")


def assigned(file: str) -> dict[str, str]:
    return dict(re.findall(rf'({NAME})(?:=|: +)"?([^\s"\\]+)', text(file)))


@pytest.mark.parametrize("file", FILES)
def test_every_setting_named_is_accepted(file: str) -> None:
    values = assigned(file)
    assert values
    assert set(re.findall(NAME, text(file))) == values.keys()
    load_settings(None, values)


def test_the_image_answers_on_the_port_that_it_exposes() -> None:
    admin = load_settings(None, assigned("Dockerfile")).admin
    assert admin.host == "0.0.0.0"
    assert re.findall(r"^EXPOSE (\d+)$", text("Dockerfile"), re.MULTILINE) == [str(admin.port)]


def test_the_image_keeps_its_data_in_its_volume() -> None:
    storage = load_settings(None, assigned("Dockerfile")).storage
    assert re.findall(r"^VOLUME (\S+)$", text("Dockerfile"), re.MULTILINE) == [str(storage.root)]


def test_histories_of_all_partitions_fit_into_the_shared_memory_of_the_container() -> None:
    settings = load_settings(None, assigned("docker-compose.yml"))
    compose: Any = YAML(typ="safe").load(ROOT / "docker-compose.yml")
    given = re.fullmatch(r"(\d+)g", compose["services"]["headwater"]["shm_size"])
    assert given
    assert settings.topics.partitions * slab_bytes(settings.history) <= int(given[1]) * 2**30
