"""Tokens for SASL/OAUTHBEARER, from a file or from an OAuth 2 server.

aiokafka asks at each connection. What goes wrong is raised as its own connection error, which it
tells in one line and tries again; neither a token nor the client's secret is ever part of it.
"""

import asyncio
import base64
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

import orjson
from aiokafka import conn
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError, SaslAuthenticationFailed

from service.errors import ConfigurationError
from service.settings import ClientCredentials, TokenFile

_TIMEOUT_S = 10.0
_MAX_BYTES = 1024 * 1024
# A token is fetched again when this share of its life is over: clocks differ, and a broker may
# close the connection of one that expires.
_USED_LIFE = 0.8
_SHORT_LIFE_S = 60.0  # where the server does not say how long


def token_provider(oauth: TokenFile | ClientCredentials) -> AbstractTokenProvider:
    """Raises ConfigurationError where certificates cannot be read."""
    conn.OAuthAuthenticator = Authenticator  # for all clients of this process
    match oauth:
        case TokenFile(path=path):
            return FileTokens(path)
        case ClientCredentials():
            return ClientTokens(oauth)


class Authenticator(conn.OAuthAuthenticator):  # type: ignore[misc]  # aiokafka has no types
    """Notices a refusal. A broker that does not take a token answers with the reason, as RFC 7628
    has it, and without an error code; aiokafka then goes on as if it were let in."""

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        if self._token_sent and payload:
            raise SaslAuthenticationFailed("the broker refuses our OAuth token")
        asked: tuple[bytes, bool] | None = await super().step(payload)
        return asked


class FileTokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Whatever stands in the file now."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def token(self) -> str:
        return await asyncio.to_thread(self._read)

    def _read(self) -> str:
        try:
            text = self._path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
            raise _failed(
                f"cannot read it from kafka.oauth.path = {self._path} ({reason})"
            ) from None
        return _checked(text, f"kafka.oauth.path = {self._path}")


class ClientTokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """Fetched with the client's id and secret, and kept for most of their life."""

    def __init__(self, oauth: ClientCredentials) -> None:
        self._oauth = oauth
        cafile = str(oauth.ca_file) if oauth.ca_file else None
        try:
            context = ssl.create_default_context(cafile=cafile)
        except OSError as error:
            raise ConfigurationError(
                f"cannot read certificates from kafka.oauth.ca_file = {cafile} ({error.strerror}); "
                "name a PEM file"
            ) from None
        # Not through redirects: they would take the secret to another server.
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), _NoRedirects()
        )
        self._lock = asyncio.Lock()
        self._token = ""
        self._fresh_until_s = 0.0

    async def token(self) -> str:
        async with self._lock:
            if time.monotonic() >= self._fresh_until_s:
                self._token, life_s = await asyncio.to_thread(self._fetch)
                self._fresh_until_s = time.monotonic() + life_s * _USED_LIFE
            return self._token

    def _fetch(self) -> tuple[str, float]:
        """A new token and how many seconds it lives."""
        oauth = self._oauth
        asked = {"grant_type": "client_credentials"} | (
            {"scope": oauth.scope} if oauth.scope else {}
        )
        pair = (oauth.client_id, oauth.client_secret.get_secret_value())
        named = ":".join(urllib.parse.quote_plus(part) for part in pair)
        request = urllib.request.Request(
            oauth.token_url,
            urllib.parse.urlencode(asked).encode(),
            {
                "Authorization": f"Basic {base64.b64encode(named.encode()).decode()}",
                "Accept": "application/json",
            },
        )
        where = f"kafka.oauth.token_url = {oauth.token_url}"
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as reply:
                plain = orjson.loads(reply.read(_MAX_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise _failed(f"{where} answers with status {error.code}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            reason = "it is not JSON" if isinstance(error, ValueError) else reason
            raise _failed(f"{where}: {reason}") from None
        if not isinstance(plain, dict):
            raise _failed(f"{where} does not answer with a JSON object")
        life_s: Any = plain.get("expires_in")
        is_told = isinstance(life_s, int | float) and life_s > 0
        return (
            _checked(plain.get("access_token"), where),
            float(life_s) if is_told else _SHORT_LIFE_S,
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Any,
        newurl: str,
    ) -> None:
        return None


def _checked(token: object, where: str) -> str:
    """A token goes between control characters, so it must have none (RFC 6750)."""
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise _failed(f"{where} gives none")
    return token


def _failed(reason: str) -> KafkaConnectionError:
    return KafkaConnectionError(f"no OAuth token: {reason}")
