"""Tokens from a file and from an OAuth 2 server, which is a real one over HTTPS."""

import asyncio
import base64
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed
from pydantic import SecretStr, ValidationError

from service.errors import ConfigurationError
from service.settings import KafkaSettings, SaslMechanism, SecurityProtocol
from service.settings import TokenFile as FileSettings
from service.stream import tokens
from service.stream.connection import client_arguments
from service.stream.tokens import Authenticator, ClientTokens, FileTokens
from tests.stream.oauth_server import SECRET, TOKEN, OAuthServer


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OAuthServer]:
    with closing(OAuthServer(tmp_path)) as made:
        yield made


def ask(provider: FileTokens | ClientTokens, times: int = 1) -> str:
    async def run() -> str:
        *_, last = [await provider.token() for _ in range(times)]
        return str(last)

    return asyncio.run(run())


def refusal(provider: FileTokens | ClientTokens) -> str:
    """The one line; it tells no secret."""
    with pytest.raises(KafkaConnectionError) as caught:
        ask(provider)
    line = str(caught.value)
    assert "\n" not in line
    assert SECRET not in line
    assert TOKEN not in line
    return line


class TestFile:
    def test_a_changed_file_is_another_token(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        provider = FileTokens(file)
        file.write_text("one\n")
        assert ask(provider) == "one"
        file.write_text("two\n")
        assert ask(provider) == "two"

    @pytest.mark.parametrize("content", [b"", b"a\x01auth=b", b"\xff", b"two lines\nare none"])
    def test_what_is_no_token_is_refused(self, content: bytes, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_bytes(content)
        assert "kafka.oauth.path" in refusal(FileTokens(file))


class TestClient:
    def test_it_asks_with_its_secret_and_keeps_the_token(self, server: OAuthServer) -> None:
        assert ask(ClientTokens(server.settings(scope="kafka")), times=3) == TOKEN
        ((authorization, asked),) = server.asked
        named = base64.b64decode(authorization.removeprefix("Basic ")).decode()
        assert named == "me%3Atoo:s3cret%2F%2B%26%3D"
        assert asked == {"grant_type": ["client_credentials"], "scope": ["kafka"]}

    def test_it_asks_again_before_the_token_expires(
        self, server: OAuthServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokens, "_USED_LIFE", 0.0)
        ask(ClientTokens(server.settings()), times=2)
        assert len(server.asked) == 2

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            ((401, f"no {SECRET}".encode()), "status 401"),
            ((200, b"<html>"), "it is not JSON"),
            ((200, b"[]"), "not answer with a JSON object"),
            ((200, b'{"token": 1}'), "gives none"),
            ((200, b'{"access_token": "a\\u0001b"}'), "gives none"),
        ],
    )
    def test_a_refusal_is_one_line(
        self, answer: tuple[int, bytes], told: str, server: OAuthServer
    ) -> None:
        server.answer = answer
        assert told in refusal(ClientTokens(server.settings()))

    def test_the_secret_goes_nowhere_else(self, server: OAuthServer) -> None:
        server.answer, server.location = (302, b""), server.settings().token_url
        assert "status 302" in refusal(ClientTokens(server.settings()))
        assert len(server.asked) == 1

    def test_its_certificate_is_verified(self, server: OAuthServer) -> None:
        line = refusal(ClientTokens(server.settings(ca_file=None)))
        assert "certificate verify failed" in line
        assert server.asked == []

    def test_nobody_answering_is_one_line(self, server: OAuthServer) -> None:
        server.server.shutdown()
        server.server.server_close()
        assert "Connection refused" in refusal(ClientTokens(server.settings()))

    def test_unreadable_certificates_are_named(self, server: OAuthServer, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"kafka\.oauth\.ca_file = .*none"):
            ClientTokens(server.settings(ca_file=tmp_path / "none"))

    @pytest.mark.parametrize("url", ["http://server/token", f"https://me:{SECRET}@server/"])
    def test_only_https_without_a_password_in_the_address(
        self, url: str, server: OAuthServer
    ) -> None:
        with pytest.raises(ValidationError):
            server.settings(token_url=url)


def test_a_refused_token_is_an_error() -> None:
    class Fixed:
        async def token(self) -> str:
            return TOKEN

    async def answered(payload: bytes) -> object:
        authenticator = Authenticator(sasl_oauth_token_provider=Fixed())
        await authenticator.step(None)
        return await authenticator.step(payload)

    assert asyncio.run(answered(b"")) is None
    with pytest.raises(SaslAuthenticationFailed):
        asyncio.run(answered(b'{"status":"invalid_token"}'))


def kafka(**more: object) -> KafkaSettings:
    return KafkaSettings.model_validate(
        {
            "security_protocol": SecurityProtocol.SASL_SSL,
            "sasl_mechanism": SaslMechanism.OAUTHBEARER,
            **more,
        }
    )


@pytest.mark.parametrize(
    ("oauth", "kind"),
    [
        (lambda server: FileSettings(path=server.ca_file), FileTokens),
        (lambda server: server.settings(), ClientTokens),
    ],
)
def test_the_settings_choose_where_tokens_come_from(
    oauth: Callable[[OAuthServer], object], kind: type, server: OAuthServer
) -> None:
    arguments = client_arguments(kafka(oauth=oauth(server)))
    assert isinstance(arguments["sasl_oauth_token_provider"], kind)
    assert "sasl_plain_password" not in arguments


def test_a_missing_source_of_tokens_is_asked_for() -> None:
    with pytest.raises(ConfigurationError, match=r"kafka\.oauth"):
        client_arguments(kafka())


def test_neither_the_tree_nor_its_faults_show_the_secret(server: OAuthServer) -> None:
    settings = kafka(oauth=server.settings(), sasl_password=SecretStr(SECRET))
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump(mode='json')}"
