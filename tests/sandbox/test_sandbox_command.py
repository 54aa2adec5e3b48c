"""What `headwater sandbox` prints can be copied, and is what the README shows."""

import asyncio
import re
import textwrap
from pathlib import Path

import pytest

from service.sandbox import sandbox_command
from service.sandbox.sandbox_command import next_commands, run_sandbox
from service.settings import KafkaSettings, Settings, TopicsSettings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BOOTSTRAP = "localhost:9092"


def readme_client() -> str:
    found = re.search(r"```python\n(.+?)```", README, re.DOTALL)
    assert found
    return found[1]


def readme_kcat() -> str:
    found = re.search(r"( {4}echo .+?\n)\n", README, re.DOTALL)
    assert found
    return textwrap.dedent(found[1])


def test_the_python_client_is_the_readmes() -> None:
    at = f'bootstrap_servers="{BOOTSTRAP}"'
    client = readme_client().replace('r("recommendations")', f'r("recommendations", {at})')
    client = client.replace("AIOKafkaProducer()", f"AIOKafkaProducer({at})")
    assert f"<<'END'\n{client}END\n" in next_commands(BOOTSTRAP, TopicsSettings(), None)


def test_the_python_client_has_ten_lines() -> None:
    lines = [line for line in readme_client().splitlines() if line]
    assert len(lines) == 10
    compile(readme_client(), "README.md", "exec")


def test_the_kcat_lines_are_the_readmes() -> None:
    assert f"\n{readme_kcat()}\n" in next_commands(BOOTSTRAP, TopicsSettings(), None)


def test_the_commands_name_these_topics_and_the_settings_file() -> None:
    topics = TopicsSettings(events="e", recommendations="r", dead_letter="d")
    text = next_commands("kafka:1", topics, Path("my.toml"))
    assert text.startswith("Its topics: e, r, d\n")
    assert "\nheadwater serve --bootstrap kafka:1 --config my.toml\n" in text
    assert 'send_and_wait("e", ' in text
    assert 'AIOKafkaConsumer("r", bootstrap_servers="kafka:1")' in text
    assert " -b kafka:1 -t e -K: " in text


@pytest.mark.parametrize("how", ["option", "environment"])
def test_a_kafka_that_is_named_is_used(
    how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def create(kafka: KafkaSettings, topics: TopicsSettings) -> list[str]:
        await asyncio.sleep(0)
        asked.append(kafka.bootstrap_servers)
        return []

    monkeypatch.setattr(sandbox_command, "create_topics", create)
    if how == "environment":
        monkeypatch.setenv("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", "kafka:1")
    option = "kafka:1" if how == "option" else None
    assert run_sandbox(option, 9092, None, None, Settings()) == 0
    assert asked == ["kafka:1"]
    assert "headwater serve --bootstrap kafka:1\n" in capsys.readouterr().out
