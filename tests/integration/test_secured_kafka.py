"""A Kafka with passwords, tokens, certificates and access control lists: what fits gets in, what is
refused is told in one line."""

import asyncio
import base64
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives import serialization
from pydantic import SecretStr

from service.domain import Offsets
from service.errors import ConfigurationError
from service.metrics import Metrics
from service.sandbox.kafka import LocalKafka
from service.settings import (
    KafkaSettings,
    PrivacySettings,
    SaslMechanism,
    SecurityProtocol,
    TokenFile,
    TopicsSettings,
)
from service.stream.dead_letters import DeadLetters
from service.stream.sink import Sink
from service.stream.source import Source
from service.stream.topics import create_topics, require_topics
from tests.integration.running import Service, headwater
from tests.integration.traffic import dead_letters, make_stream, produce, recommendations, send
from tests.stream.oauth_server import SECRET, OAuthServer

pytestmark = pytest.mark.integration

PASSWORD = "open-sesame"
# Who may do what, besides seeing the topics.
STRANGER, ONLOOKER, MEMBER, ALL = "stranger", "onlooker", "member", "all"
TOPICS = TopicsSettings(partitions=1)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Of one broker's listeners, and the certificates to trust."""

    open: str
    password: str  # SASL
    tls: str  # with a certificate for this address
    both: str  # SASL over TLS
    other_name: str  # with one of the same authority for another host
    ca_file: Path


@pytest.fixture(scope="module")
def listeners(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A broker; without a password or certificate all is allowed at one more port."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    names = ("open", "secured", "tls", "both", "other")
    *ports, controller_port = free_ports(len(names) + 1)
    at = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    protocols = {
        "open": "PLAINTEXT",
        "secured": "SASL_PLAINTEXT",
        "tls": "SSL",
        "both": "SASL_SSL",
        "other": "SSL",
    }
    advertised = ",".join(f"{name.upper()}://{at[name]}" for name in names)
    users = " ".join(f'user_{name}="{PASSWORD}"' for name in (STRANGER, ONLOOKER, MEMBER, ALL))
    login = "listener.name.{}.{}.sasl.jaas.config"
    kafka_login = "org.apache.kafka.common.security"
    scram = f"{kafka_login}.scram.ScramLoginModule required;"
    oauth = f"{kafka_login}.oauthbearer.OAuthBearerLoginModule required;"
    properties = {
        "listeners": f"{advertised},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": advertised,
        "inter.broker.listener.name": "OPEN",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,"
        + ",".join(f"{name.upper()}:{protocol}" for name, protocol in protocols.items()),
        "listener.name.secured.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,OAUTHBEARER",
        "listener.name.both.sasl.enabled.mechanisms": "SCRAM-SHA-512,OAUTHBEARER",
        login.format("secured", "plain"): f"{kafka_login}.plain.PlainLoginModule required {users};",
        login.format("secured", "scram-sha-256"): scram,
        login.format("both", "scram-sha-512"): scram,
        # Takes tokens that nobody has signed; Kafka has it for tests.
        login.format("secured", "oauthbearer"): oauth,
        login.format("both", "oauthbearer"): oauth,
        **tls_properties("tls", authority.issue_cert("127.0.0.1"), folder),
        **tls_properties("both", authority.issue_cert("127.0.0.1"), folder),
        **tls_properties("other", authority.issue_cert("kafka.example"), folder),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{ALL}",
    }
    with LocalKafka(port=ports[0], properties=properties):
        asyncio.run(create_topics(KafkaSettings(bootstrap_servers=at["open"]), TOPICS))
        grant(
            at["open"],
            (ONLOOKER, ResourceType.TOPIC, AclOperation.DESCRIBE),
            (MEMBER, ResourceType.TOPIC, AclOperation.DESCRIBE),
            (MEMBER, ResourceType.GROUP, AclOperation.READ),
        )
        let_in_by_scram(at["open"])
        yield Addresses(
            at["open"], at["secured"], at["tls"], at["both"], at["other"], folder / "ca.pem"
        )


@pytest.fixture(scope="module")
def secured(listeners: Addresses) -> str:
    return listeners.password


def tls_properties(name: str, issued: trustme.LeafCert, folder: Path) -> dict[str, str]:
    """A listener's certificate, as one file of the format that Kafka reads."""
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    plain = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = folder / f"{name}.pem"
    file.write_bytes(plain + b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    listener = f"listener.name.{name}.ssl.keystore"
    return {f"{listener}.type": "PEM", f"{listener}.location": str(file)}


def let_in_by_scram(bootstrap: str) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
        info = ScramCredentialInfo(mechanism, 4096)
        change = UserScramCredentialUpsertion(MEMBER, info, PASSWORD.encode())
        for done in client.alter_user_scram_credentials([change]).values():
            done.result(30)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def grant(bootstrap: str, *rights: tuple[str, ResourceType, AclOperation]) -> None:
    """To everything of that type."""
    bindings = [
        AclBinding(
            kind,
            "*",
            ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            operation,
            AclPermissionType.ALLOW,
        )
        for user, kind, operation in rights
    ]
    client = AdminClient({"bootstrap.servers": bootstrap})
    for done in client.create_acls(bindings).values():
        done.result(30)


def settings(
    secured: str,
    user: str,
    password: str = PASSWORD,
    mechanism: SaslMechanism = SaslMechanism.PLAIN,
) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=secured,
        security_protocol=SecurityProtocol.SASL_PLAINTEXT,
        sasl_mechanism=mechanism,
        sasl_username=user,
        sasl_password=SecretStr(password),
    )


def to_the_end(work: Callable[[], Awaitable[object]]) -> None:
    """Until its connections are closed, which over TLS takes a word from the other side."""

    async def run() -> None:
        try:
            await asyncio.wait_for(work(), 60)
        finally:
            await asyncio.sleep(0.3)

    asyncio.run(run())


def let_in(kafka: KafkaSettings) -> None:
    to_the_end(lambda: require_topics(kafka, TOPICS))


def refusal(work: Callable[[], Awaitable[object]]) -> str:
    """The one line."""

    with pytest.raises(ConfigurationError) as told:
        to_the_end(work)
    line = str(told.value)
    assert "\n" not in line
    assert PASSWORD not in line
    return line


def test_a_wrong_password(secured: str) -> None:
    line = refusal(lambda: require_topics(settings(secured, MEMBER, "guessed"), TOPICS))
    assert "Authentication failed" in line
    assert "security settings" in line
    assert "guessed" not in line


def test_a_mechanism_that_the_broker_does_not_offer(secured: str) -> None:
    kafka = settings(secured, MEMBER, mechanism=SaslMechanism.SCRAM_SHA_512)
    line = refusal(lambda: require_topics(kafka, TOPICS))
    assert "UnsupportedSaslMechanism" in line
    assert "security settings" in line


@pytest.mark.parametrize("mechanism", [SaslMechanism.PLAIN, SaslMechanism.SCRAM_SHA_256])
def test_a_password_lets_in(secured: str, mechanism: SaslMechanism) -> None:
    let_in(settings(secured, MEMBER, mechanism=mechanism))


def test_a_service_tells_its_password_nowhere(listeners: Addresses, tmp_path: Path) -> None:
    stream = make_stream(listeners.open, partitions=1)
    secured = {
        "HEADWATER_KAFKA__BOOTSTRAP_SERVERS": listeners.password,
        "HEADWATER_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "HEADWATER_KAFKA__SASL_USERNAME": ALL,
        "HEADWATER_KAFKA__SASL_PASSWORD": PASSWORD,
        "HEADWATER_LOG__LEVEL": "DEBUG",
    }
    with Service(stream, tmp_path, secured) as service:
        expected = produce(stream, range(200))
        send(stream, b"ann", b"no event")
        assert len(recommendations(stream, len(expected), 90.0)) == len(expected)
        (letter,) = dead_letters(stream, 1, 90.0)
        told = [service.get("/metrics")[1], repr(letter)]
        told += [headwater(["config"], service.environ).stdout]
        told += [headwater(["doctor"], service.environ).stdout]
    told += [service.text()]
    assert all(told)
    encoded = base64.b64encode(PASSWORD.encode()).decode().rstrip("=")
    assert [text for text in told if PASSWORD in text or encoded in text] == []


def with_token(secured: str, file: Path) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=secured,
        security_protocol=SecurityProtocol.SASL_PLAINTEXT,
        sasl_mechanism=SaslMechanism.OAUTHBEARER,
        oauth=TokenFile(path=file),
    )


def a_token(user: str, life_s: float) -> str:
    """Unsigned, as the broker of these tests takes it."""
    now_s = time.time()
    claims = {"sub": user, "iat": now_s - 60, "exp": now_s + life_s}
    parts = [
        base64.urlsafe_b64encode(json.dumps(one).encode()) for one in ({"alg": "none"}, claims)
    ]
    return b".".join(part.rstrip(b"=") for part in parts).decode() + "."


def test_a_token_lets_in_and_the_file_is_read_again(secured: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    kafka = with_token(secured, file)
    file.write_text(a_token(MEMBER, life_s=-30))
    line = refusal(lambda: require_topics(kafka, TOPICS))
    assert "the broker refuses our OAuth token" in line
    assert file.read_text() not in line
    file.write_text(a_token(MEMBER, life_s=300) + "\n")
    let_in(kafka)


def test_a_missing_token_is_told(secured: str, tmp_path: Path) -> None:
    line = refusal(lambda: require_topics(with_token(secured, tmp_path / "none"), TOPICS))
    assert "no OAuth token: cannot read it from kafka.oauth.path" in line


def over_tls(bootstrap: str, ca_file: Path | None) -> KafkaSettings:
    return KafkaSettings(
        bootstrap_servers=bootstrap,
        security_protocol=SecurityProtocol.SSL,
        ssl_ca_file=ca_file,
        connect_timeout_s=20,
    )


def test_a_certificate_of_a_trusted_authority_lets_in(listeners: Addresses) -> None:
    let_in(over_tls(listeners.tls, listeners.ca_file))


def test_another_authority_is_not_trusted(listeners: Addresses, tmp_path: Path) -> None:
    other = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(other)
    line = refusal(lambda: require_topics(over_tls(listeners.tls, other), TOPICS))
    assert "certificate verify failed" in line
    line = refusal(lambda: require_topics(over_tls(listeners.tls, None), TOPICS))
    assert "certificate verify failed" in line


def test_a_certificate_for_another_host_is_not_taken(listeners: Addresses) -> None:
    line = refusal(
        lambda: require_topics(over_tls(listeners.other_name, listeners.ca_file), TOPICS)
    )
    assert "certificate verify failed" in line
    assert "not valid for '127.0.0.1'" in line


def test_a_password_lets_in_over_tls(listeners: Addresses) -> None:
    kafka = over_tls(listeners.both, listeners.ca_file).model_copy(
        update={
            "security_protocol": SecurityProtocol.SASL_SSL,
            "sasl_mechanism": SaslMechanism.SCRAM_SHA_512,
            "sasl_username": MEMBER,
            "sasl_password": SecretStr(PASSWORD),
        }
    )
    let_in(kafka)
    guessed = kafka.model_copy(update={"sasl_password": SecretStr("guessed")})
    assert "Authentication failed" in refusal(lambda: require_topics(guessed, TOPICS))
    assert "certificate verify failed" in refusal(
        lambda: require_topics(kafka.model_copy(update={"ssl_ca_file": None}), TOPICS)
    )


def test_a_token_of_an_oauth_server_lets_in_over_tls(listeners: Addresses, tmp_path: Path) -> None:
    with contextlib.closing(OAuthServer(tmp_path)) as server:
        kafka = over_tls(listeners.both, listeners.ca_file).model_copy(
            update={
                "security_protocol": SecurityProtocol.SASL_SSL,
                "sasl_mechanism": SaslMechanism.OAUTHBEARER,
                "oauth": server.settings(),
            }
        )
        server.give(a_token(MEMBER, life_s=300))
        let_in(kafka)
        assert len(server.asked) >= 1
        server.answer = (401, b"{}")
        line = refusal(lambda: require_topics(kafka, TOPICS))
        assert "answers with status 401" in line
        assert SECRET not in line


def test_topics_that_we_may_not_see_are_missing(secured: str) -> None:
    line = refusal(lambda: require_topics(settings(secured, STRANGER), TOPICS))
    assert "missing topics: events, recommendations" in line


def test_a_group_that_we_may_not_join(secured: str) -> None:
    async def join() -> None:
        source = a_source(settings(secured, ONLOOKER))
        try:
            await source.start()
        finally:
            await source.stop()

    line = refusal(join)
    assert "GroupAuthorizationFailed" in line
    assert "access control lists" in line


def test_a_topic_that_we_may_not_read(secured: str) -> None:
    async def read() -> None:
        source = a_source(settings(secured, MEMBER))
        try:
            await source.start()
            while True:
                await source.read(1, 0.1)
        finally:
            await source.stop()

    line = refusal(read)
    assert "read topic 'events'" in line
    assert "TopicAuthorizationFailed" in line


def test_topics_that_we_may_not_write(secured: str) -> None:
    async def write() -> None:
        letters = DeadLetters(TOPICS, PrivacySettings())
        sink = Sink(settings(secured, MEMBER), TOPICS, Metrics(), letters)
        try:
            await sink.start()
            await sink.recommend([(b"ann", b"{}", [])])
        finally:
            await sink.stop()

    line = refusal(write)
    assert "AuthorizationFailed" in line
    assert "access control lists" in line


def a_source(kafka: KafkaSettings) -> Source:
    async def assigned(_: object) -> Offsets:
        return {}

    async def revoked(_: object) -> None: ...

    return Source(kafka, TOPICS, Metrics(), assigned, revoked)
