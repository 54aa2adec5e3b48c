"""What is written from the code is current, and says what holds."""

import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from scripts import make_schemas, make_settings_reference
from service.cli import _parser
from service.domain import Cause, Recommendation, RecommendedItem
from service.settings import ENV_LEVEL, ENV_PREFIX, Settings, load_settings

EXAMPLES = Path(__file__).parents[1] / "examples"

_EVENT = {"user_id": "u", "item_id": "i", "event": "view", "timestamp": 1_700_000_000_000}


@pytest.mark.parametrize("name", make_schemas.schemas())
def test_a_schema_is_current(name: str) -> None:
    written = (make_schemas.FOLDER / name).read_text(encoding="utf-8")
    assert written == make_schemas.schemas()[name], "run `make schemas`"


def test_the_settings_reference_is_current() -> None:
    written = make_settings_reference.FILE.read_text(encoding="utf-8")
    assert written == make_settings_reference.reference(), "run `make schemas`"


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(make_schemas.schemas()[name])
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


@pytest.mark.parametrize(
    "more", [{}, {"timestamp": "2026-01-31T09:30:00Z"}, {"value": 2.5, "context": {}, "more": 1}]
)
def test_the_event_schema_takes_what_the_codec_takes(more: dict[str, Any]) -> None:
    jsonschema.validate(_EVENT | more, _schema("event.schema.json"))


@pytest.mark.parametrize(
    "wrong", [{"user_id": ""}, {"event": None}, {"timestamp": -1}, {"value": "2"}]
)
def test_the_event_schema_refuses_what_the_codec_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_EVENT | wrong, _schema("event.schema.json"))


def test_the_recommendation_schema_describes_what_is_sent() -> None:
    sent = Recommendation(
        rec_id="events/0/1",
        user_id="u",
        items=[RecommendedItem(item_id="i", score=0.5)],
        model_version=3,
        trained_through={"0": 7},
        event=Cause(item_id="i", event="view", timestamp=1),
        generated_at=2,
    )
    jsonschema.validate(sent.model_dump(mode="json"), _schema("recommendation.schema.json"))


def test_the_settings_reference_names_every_key() -> None:
    page = make_settings_reference.reference()
    for section, keys in Settings().model_dump().items():
        if not isinstance(keys, dict):
            assert f"`{ENV_PREFIX}{section.upper()}`" in page
            continue
        for key, value in keys.items():
            if not isinstance(value, dict):
                assert f"`{ENV_PREFIX}{ENV_LEVEL.join((section, key)).upper()}`" in page


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda file: file.name)
def test_an_example_can_be_read_and_is_started_as_it_says(file: Path) -> None:
    commands = [
        line[2:] for line in file.read_text().splitlines() if line.startswith("# headwater")
    ]
    assert commands
    for command in commands:
        told = _parser().parse_args(shlex.split(command)[1:])
        assert load_settings(EXAMPLES.parent / told.config, {}).model.backbone.kind == "pretrained"


def test_a_secret_has_no_default_to_show() -> None:
    page = make_settings_reference.reference()
    assert "| `sasl_password` | secret text | unset |" in page
