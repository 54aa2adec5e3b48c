"""Settings: who wins, what is refused, what is shown."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from service.errors import ConfigurationError
from service.settings import (
    Backbone,
    CategoryFeature,
    ClientCredentials,
    GapFeature,
    PretrainedBackbone,
    Section,
    Settings,
    SmallBackbone,
    environment_file,
    load_settings,
    masked,
)


def _file(folder: Path, text: str) -> Path:
    path = folder / "headwater.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _fault(
    file: Path | None = None,
    environ: dict[str, str] | None = None,
    overrides: dict[str, Any] | None = None,
) -> str:
    """The message of the error; an operator reads it as one line."""
    with pytest.raises(ConfigurationError) as caught:
        load_settings(file, environ or {}, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_need_no_source() -> None:
    assert load_settings(None, {}) == Settings()


def test_override_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = _file(tmp_path, "[scorer]\ntop_k = 20\n[admin]\nport = 1\n[kafka]\ngroup_id = 'a'\n")
    environ = {"HEADWATER_SCORER__TOP_K": "30", "HEADWATER_ADMIN__PORT": "2"}
    settings = load_settings(file, environ, {"scorer": {"top_k": 40}})
    assert settings.scorer.top_k == 40
    assert settings.admin.port == 2
    assert settings.kafka.group_id == "a"
    assert settings.kafka.client_id == Settings().kafka.client_id


def test_a_stronger_source_changes_one_key_and_keeps_its_neighbours(tmp_path: Path) -> None:
    file = _file(tmp_path, "[trainer.gate]\nmin_rows = 5\nz_score = 2.0\n")
    gate = load_settings(file, {"HEADWATER_TRAINER__GATE__MIN_ROWS": "7"}).trainer.gate
    assert (gate.min_rows, gate.z_score) == (7, 2.0)


def test_overrides_are_left_as_they_were() -> None:
    overrides = {"scorer": {"top_k": 3}}
    load_settings(None, {"HEADWATER_SCORER__EXCLUDE_SEEN": "false"}, overrides)
    assert overrides == {"scorer": {"top_k": 3}}


def test_the_rest_of_the_environment_is_ignored() -> None:
    environ = {
        "PATH": "/bin",
        "HEADWATER_CONFIG": "x.toml",
        "HEADWATER_TEST_KAFKA": "localhost:1",
    }
    assert load_settings(None, environ) == Settings()


def test_environment_converts_numbers_and_truth() -> None:
    environ = {
        "HEADWATER_BATCH__TRAIN_MAX_WAIT_S": "0.25",
        "HEADWATER_SCORER__EXCLUDE_SEEN": "false",
        "HEADWATER_STORAGE__ROOT": "elsewhere",
    }
    settings = load_settings(None, environ)
    assert settings.batch.train_max_wait_s == 0.25
    assert settings.scorer.exclude_seen is False
    assert settings.storage.root == Path("elsewhere")


@pytest.mark.parametrize("name", ["KINDS", "RECOMMEND_ON"])
def test_lists_come_from_the_environment_as_json(name: str) -> None:
    settings = load_settings(None, {f"HEADWATER_EVENTS__{name}": '["view", "buy"]'})
    assert getattr(settings.events, name.lower()) == ("view", "buy")


@pytest.mark.parametrize("text", ["view,buy", "[view", ""])
def test_a_list_that_is_not_json_is_refused_with_an_example(text: str) -> None:
    message = _fault(environ={"HEADWATER_EVENTS__KINDS": text})
    assert message.startswith("HEADWATER_EVENTS__KINDS is not valid JSON")
    assert '["view", "buy"]' in message


def test_a_section_comes_from_the_environment_as_json_and_a_key_of_it_wins() -> None:
    environ = {
        "HEADWATER_MODEL__BACKBONE": '{"kind": "small", "dim": 32, "layers": 3}',
        "HEADWATER_MODEL__BACKBONE__DIM": "16",
    }
    assert load_settings(None, environ).model.backbone == SmallBackbone(dim=16, layers=3)


@pytest.mark.parametrize("password", ["[secret", "{secret}", "[1]", "0123", "null"])
def test_a_password_is_text_whatever_it_looks_like(password: str) -> None:
    kafka = load_settings(None, {"HEADWATER_KAFKA__SASL_PASSWORD": password}).kafka
    assert kafka.sasl_password is not None
    assert kafka.sasl_password.get_secret_value() == password


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({"HEADWATER_KAFKA__BOOTSTRAP": "localhost:9092"}, "kafka.bootstrap"),
        ({"HEADWATER_TOPIC": "events"}, "topic"),
        (
            {"HEADWATER_MODEL__BACKBONE": '{"kind": "small", "width": 1}'},
            "model.backbone.width",
        ),
    ],
)
def test_an_unknown_key_is_an_error_that_names_it(environ: dict[str, str], where: str) -> None:
    message = _fault(environ=environ)
    assert message.startswith(f"unknown setting {where};")
    assert "headwater config" in message


@pytest.mark.parametrize(
    "url",
    [
        "sftp://ann:secret@host/there",
        "simplecache::s3://key:secret@bucket",
        "s3://key:se/secret@bucket/there",
        "s3://key:12/secret@bucket/there",
        "https://secret@host/there",
        "https://host/there?sig=secret",
    ],
)
def test_a_url_that_is_shown_holds_no_password(url: str) -> None:
    with pytest.raises(ConfigurationError, match="a password does not belong into") as caught:
        load_settings(None, {"HEADWATER_STORAGE__SNAPSHOTS": url})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a:b@c",
        "sftp://ann@host:22/there",
        "sftp://[::1]:22/there",
        "sftp://host:22",
        "dir://there::s3://bucket",
        "/a:b@c",
    ],
)
def test_a_url_without_a_password_is_taken(url: str) -> None:
    assert load_settings(None, {"HEADWATER_STORAGE__SNAPSHOTS": url}).storage.snapshots == url


def test_an_unknown_key_of_the_file_is_an_error(tmp_path: Path) -> None:
    message = _fault(_file(tmp_path, "[scorer]\ntop_n = 3\n"))
    assert message.startswith("unknown setting scorer.top_n;")


def test_every_fault_is_named_at_once() -> None:
    message = _fault(overrides={"scorer": {"top_k": 0}, "admin": {"port": 70_000}, "x": 1})
    assert "scorer.top_k" in message
    assert "admin.port" in message
    assert "unknown setting x" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"scorer": {"top_k": "many"}}, "setting scorer.top_k: Input should be a valid integer"),
        ({"trainer": {"learning_rate": "nan"}}, "trainer.learning_rate: Input should be a finite"),
        ({"batch": {"train_max_wait_s": float("inf")}}, "train_max_wait_s: Input should be a fini"),
        ({"model": {"dropout": 1.0}}, "setting model.dropout: Input should be less than 1"),
        ({"model": {"backbone": {"dim": 8}}}, "kind is missing: small or gru or pretrained"),
        (
            {"model": {"context": [{"kind": "hour"}, {"name": "a"}]}},
            "setting model.context.1.kind is missing: category or number or event_kind",
        ),
        (
            {"model": {"context": [{"kind": "category", "name": "a", "buckets": 1}]}},
            "setting model.context.0.buckets: Input should be greater than or equal to 2",
        ),
        (
            {"model": {"context": [{"kind": "hour", "name": "a"}]}},
            "unknown setting model.context.0.name",
        ),
        (
            {"model": {"context": [{"kind": "category", "name": "a b"}]}},
            "setting model.context.0.name: String should match",
        ),
        (
            {"model": {"context": [{"kind": "gap"}, {"kind": "gap"}]}},
            "setting model.context: each feature may be there once; more than once are ['gap']",
        ),
        (
            {"model": {"context": [{"kind": "number", "name": f"n{i}"} for i in range(17)]}},
            "setting model.context: Tuple should have at most 16 items",
        ),
        ({"trainer": {"trained": {"n": 2}}}, "setting trainer.trained.kind is missing: full or h"),
        (
            {"model": {"backbone": {"kind": "pretrained"}}},
            "setting model.backbone.name: Field required",
        ),
        (
            {"kafka": "localhost"},
            "setting kafka: it is a section; set its keys one by one (HEADWATER_KAFKA__...)",
        ),
        ({"model": {"backbone": 1}}, 'JSON (HEADWATER_MODEL__BACKBONE={"KEY": ...})'),
        ({"kafka": {"bootstrap_servers": ""}}, "setting kafka.bootstrap_servers: is empty; name"),
        ({"kafka": {"bootstrap_servers": " , "}}, "kafka.bootstrap_servers: is empty"),
        ({"items": {"vectors": [{"name": "text", "width": 3}]}}, "items.vectors.0.name: `text` is"),
        ({"items": {"vectors": [{"name": "image", "width": 0}]}}, "items.vectors.0.width: Input"),
        (
            {"items": {"vectors": 2 * [{"name": "image", "width": 3}]}},
            "setting items.vectors: a name is there twice: image, image",
        ),
        ({"events": {"kinds": []}}, "setting events: kinds must name 1 to 255 distinct kinds"),
        ({"events": {"kinds": ["a", "a"]}}, "setting events: kinds must name"),
        (
            {"events": {"recommend_on": ["browse"]}},
            "setting events: recommend_on names kinds that are not in kinds: ['browse']",
        ),
        ({"events": {"shown": ["ad"]}}, "events: shown names kinds that are not in kinds: ['ad']"),
        (
            {"events": {"recommend_on": ["view", "impression"]}},
            "setting events: recommend_on and shown both name ['impression']",
        ),
        (
            {"events": {"negative": ["hate"]}},
            "setting events: negative names kinds that are not in kinds: ['hate']",
        ),
        (
            {"events": {"negative": ["impression"]}},
            "setting events: negative and shown both name ['impression']",
        ),
        (
            {"events": {"weights": {"by": 2}}},
            "setting events: weights names kinds that are not in kinds: ['by']",
        ),
        (
            {"events": {"weights": {"buy": -1}}},
            "setting events.weights.buy: Input should be greater than or equal to 0",
        ),
        (
            {
                "click": {"enabled": True, "followed_by": ["buy"]},
                "events": {"negative": ["buy"]},
            },
            "settings: click.followed_by and events.negative both name ['buy']",
        ),
        (
            {"trainer": {"augment": {"substitute": 0.1}}, "memory": {"enabled": False}},
            "trainer.augment.substitute takes items from the memory: set memory.enabled, or",
        ),
        (
            {"click": {"enabled": True, "kinds": ["ad"]}},
            "settings: click names kinds that are not in events.kinds: ['ad']",
        ),
        (
            {"click": {"loss": "squared", "followed_by": ["click"]}},
            "setting click: loss = squared needs values for labels: leave followed_by empty",
        ),
        (
            {"click": {"kinds": ["view"], "followed_by": ["view"]}},
            "setting click: kinds and followed_by both name ['view']",
        ),
        ({"history": {"events": 10}}, "settings: history.events (10) must be at least"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_setting(
    overrides: dict[str, Any], message: str
) -> None:
    assert message in _fault(overrides=overrides)


def test_a_key_and_a_key_below_it_cannot_both_be_set() -> None:
    message = _fault(
        environ={"HEADWATER_KAFKA__CLIENT_ID": "a", "HEADWATER_KAFKA__CLIENT_ID__X": "b"}
    )
    assert "both client_id and a key below it" in message


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    message = _fault(path)
    assert message.startswith(f"cannot read settings file {path}: No such file or directory; name")
    assert "--config or HEADWATER_CONFIG" in message


def test_a_number_for_a_section_says_how_a_section_is_set() -> None:
    message = _fault(environ={"HEADWATER_KAFKA": "1"})
    assert "HEADWATER_KAFKA__..." in message
    assert "KafkaSettings" not in message


@pytest.mark.parametrize("content", [b"[kafka", b"\xff\xfe", b"a = 1\na = 2"])
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "headwater.toml"
    path.write_bytes(content)
    assert _fault(path).startswith(f"settings file {path} is not valid TOML: ")


def test_secrets_are_masked_wherever_the_tree_is_shown() -> None:
    settings = load_settings(None, {"HEADWATER_KAFKA__SASL_PASSWORD": "opensesame"})
    assert masked(settings)["kafka"]["sasl_password"] == "**********"
    assert "opensesame" not in f"{masked(settings)}{settings!r}{settings}"


def test_a_fault_does_not_show_the_secret_beside_it() -> None:
    kafka = {"sasl_password": "opensesame", "sasl_username": 1, "session_timeout_s": "opensesame"}
    assert "opensesame" not in _fault(overrides={"kafka": kafka})


class TestSecretsInFiles:
    """`..._FILE` in the environment, as containers are given secrets."""

    def test_a_value_is_read_from_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("open sesame \n")
        (tmp_path / "id").write_text("me\r\n")
        environ = {
            "HEADWATER_KAFKA__SASL_PASSWORD_FILE": str(tmp_path / "password"),
            "HEADWATER_KAFKA__OAUTH__KIND": "client",
            "HEADWATER_KAFKA__OAUTH__TOKEN_URL": "https://id.example/token",
            "HEADWATER_KAFKA__OAUTH__CLIENT_ID_FILE": str(tmp_path / "id"),
            "HEADWATER_KAFKA__OAUTH__CLIENT_SECRET_FILE": str(tmp_path / "password"),
        }
        kafka = load_settings(None, environ).kafka
        assert kafka.sasl_password == SecretStr("open sesame ")
        assert isinstance(kafka.oauth, ClientCredentials)
        assert kafka.oauth.client_id == "me"
        assert kafka.oauth.client_secret == SecretStr("open sesame ")

    def test_a_setting_that_is_called_a_file_stays_one(self) -> None:
        environ = {"HEADWATER_KAFKA__SSL_CA_FILE": "ca.pem"}
        assert load_settings(None, environ).kafka.ssl_ca_file == Path("ca.pem")

    def test_both_are_one_too_many(self) -> None:
        environ = {
            "HEADWATER_KAFKA__SASL_PASSWORD": "opensesame",
            "HEADWATER_KAFKA__SASL_PASSWORD_FILE": "file",
        }
        message = _fault(environ=environ)
        assert "are both set" in message
        assert "opensesame" not in message

    @pytest.mark.parametrize("content", [None, b"", b"\xff\n"])
    def test_a_file_that_gives_nothing_is_named(
        self, content: bytes | None, tmp_path: Path
    ) -> None:
        file = tmp_path / "secret"
        if content is not None:
            file.write_bytes(content)
        message = _fault(environ={"HEADWATER_PRIVACY__HASH_KEY_FILE": str(file)})
        assert "HEADWATER_PRIVACY__HASH_KEY_FILE" in message

    def test_an_unknown_setting_stays_unknown(self) -> None:
        message = _fault(environ={"HEADWATER_KAFKA__PASSWORD_FILE": "file"})
        assert message.startswith("unknown setting kafka.password_file;")


CANARY = "canary-of-mine-17"


@pytest.mark.parametrize(
    "environ",
    [
        {"HEADWATER_KAFKA": f'{{"sasl_password": "{CANARY}", "port": 1}}'},
        {"HEADWATER_KAFKA": f'{{"sasl_password": "{CANARY}"'},
        {"HEADWATER_KAFKA": CANARY},
        {"HEADWATER_KAFKA__SASL_PASSWORD": CANARY, "HEADWATER_KAFKA__SESSION_TIMEOUT_S": "0"},
        {"HEADWATER_KAFKA__SASL_PASSWROD": CANARY},
        {"HEADWATER_KAFKA__SASL_PASSWORD__X": CANARY},
        {"HEADWATER_KAFKA__OAUTH__CLIENT_SECRET": CANARY},
        {"HEADWATER_KAFKA__OAUTH": f'{{"kind": "client", "client_secret": "{CANARY}"}}'},
        {
            "HEADWATER_KAFKA__OAUTH": f'{{"kind": "client", "client_id": "me", "client_secret": '
            f'"{CANARY}", "token_url": "https://me:{CANARY}@server"}}'
        },
        {"HEADWATER_PRIVACY__HASH_KEY": CANARY[:15]},
        {"HEADWATER_PRIVACY": f'{{"hash_key": ["{CANARY}"]}}'},
    ],
)
def test_no_fault_shows_a_secret(environ: dict[str, str]) -> None:
    assert CANARY[:15] not in _fault(environ=environ)


def test_no_fault_of_a_file_shows_a_secret(tmp_path: Path) -> None:
    for text in (f'sasl_password = "{CANARY}', f"[kafka]\nsasl_password = {CANARY}", CANARY):
        assert CANARY not in _fault(_file(tmp_path, text))


def test_what_is_shown_can_be_loaded_again() -> None:
    assert load_settings(None, {}, masked(Settings())) == Settings()


def test_the_tree_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.scorer.top_k = 5  # type: ignore[misc]  # what this test is about


def test_a_pretrained_backbone_is_named_by_hub_id_or_folder() -> None:
    backbone = {"kind": "pretrained", "name": "models/mine"}
    settings = load_settings(None, {}, {"model": {"backbone": backbone}})
    assert settings.model.backbone == PretrainedBackbone(name="models/mine")


def test_the_environment_names_the_file() -> None:
    assert environment_file({"HEADWATER_CONFIG": "a.toml"}) == Path("a.toml")
    assert environment_file({}) is None


def test_the_environment_is_read_when_asked_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HEADWATER_CONFIG", "later.toml")
    assert environment_file() == Path("later.toml")


def _sections(section: type[Section]) -> list[type[Section]]:
    below = [field.annotation for field in section.model_fields.values()]
    inner = [each for each in below if isinstance(each, type) and issubclass(each, Section)]
    return [section, *(found for each in inner for found in _sections(each))]


@pytest.mark.parametrize(
    "section", [*_sections(Settings), SmallBackbone, PretrainedBackbone], ids=lambda s: s.__name__
)
def test_every_section_is_frozen_and_closed(section: type[Section]) -> None:
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"


def test_every_plain_setting_can_come_from_the_environment() -> None:
    """Each default, written as text under its environment name, gives the defaults again."""
    environ: dict[str, str] = {}

    def write(section: Section, prefix: str) -> None:
        for name in type(section).model_fields:
            value = getattr(section, name)
            key = f"{prefix}{name.upper()}"
            if isinstance(value, Section):
                write(value, f"{key}__")
            elif value is not None and not isinstance(value, tuple):
                environ[key] = str(value)

    write(Settings(), "HEADWATER_")
    assert len(environ) > 60
    assert load_settings(None, environ) == Settings()


def test_features_of_the_context_come_from_file_and_environment(tmp_path: Path) -> None:
    file = _file(tmp_path, '[[model.context]]\nkind = "category"\nname = "geo.country"\n')
    wanted = (CategoryFeature(name="geo.country"),)
    assert load_settings(file, {}).model.context == wanted
    environ = {"HEADWATER_MODEL__CONTEXT": '[{"kind": "gap"}]'}
    assert load_settings(file, environ).model.context == (GapFeature(),)


def test_the_union_of_backbones_is_told_apart_by_kind() -> None:
    kinds: list[Backbone] = [SmallBackbone(), PretrainedBackbone(name="x")]
    assert [backbone.kind for backbone in kinds] == ["small", "pretrained"]


def test_what_was_shown_is_not_answered_unless_kinds_are_named() -> None:
    assert "impression" not in Settings().events.answered
    named = {"events": {"kinds": ["play", "skip"], "recommend_on": ["play"]}}
    events = load_settings(None, {}, named).events  # without the kind that `shown` names
    assert (events.answered, events.codes(events.shown)) == (("play",), [])
    assert load_settings(None, {}, {"events": {"recommend_on": []}}).events.answered == ()


def test_weights_of_kinds_come_from_file_and_environment(tmp_path: Path) -> None:
    file = _file(tmp_path, "[events.weights]\nbuy = 3\n")
    assert load_settings(file, {}).events.weights == {"buy": 3.0}
    one_more = {"HEADWATER_EVENTS__WEIGHTS__VIEW": "0.5"}
    assert load_settings(file, one_more).events.weights == {"buy": 3.0, "view": 0.5}
    as_json = {"HEADWATER_EVENTS__WEIGHTS": '{"cart": 2}'}
    assert load_settings(None, as_json).events.weights == {"cart": 2.0}
    assert "is not valid JSON" in _fault(environ={"HEADWATER_EVENTS__WEIGHTS": "buy"})


def test_a_kind_by_which_users_are_forgotten_is_no_kind_of_event() -> None:
    fault = _fault(overrides={"events": {"kinds": ["view", "erase"], "shown": []}})
    assert "users would be forgotten" in fault
    kinds = {"kinds": ["view", "erase"], "shown": [], "erase": ""}
    assert load_settings(None, {}, {"events": kinds}).events.erase == ""
