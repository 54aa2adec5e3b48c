"""`headwater sandbox`: a Kafka to play with, its topics made, and what to type next."""

import asyncio
import os
import signal
import threading
from pathlib import Path
from types import FrameType

from service.errors import HeadwaterError
from service.sandbox.kafka import LocalKafka
from service.sandbox.serve_process import BOOTSTRAP_VARIABLE
from service.settings import Settings, TopicsSettings
from service.stream.topics import create_topics

_LOOK_S = 0.5

# The README shows the same two ways; a test holds them together.
_NEXT = r"""
In another terminal, the service:

headwater serve {options}

In one more, an event and the recommendations, with kcat:

echo "ann:{{\"user_id\": \"ann\", \"item_id\": \"tea\", \"event\": \"view\", \"timestamp\": $(date +%s)000}}" |
  kcat -P -b {bootstrap} -t {events} -K: -X topic.partitioner=murmur2_random
kcat -C -b {bootstrap} -t {recommendations} -o beginning -e -q

or with nothing but Python:

python - <<'END'
import asyncio, json, time
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

async def main() -> None:
    async with AIOKafkaConsumer("{recommendations}", bootstrap_servers="{bootstrap}") as reader, AIOKafkaProducer(bootstrap_servers="{bootstrap}") as producer:
        await reader.seek_to_end()
        for user, item in [("ann", "tea"), ("ann", "cup"), ("bob", "tea")]:
            event = {{"user_id": user, "item_id": item, "event": "view", "timestamp": time.time_ns() // 10**6}}
            await producer.send_and_wait("{events}", json.dumps(event).encode(), key=user.encode())
            print((await reader.getone()).value.decode())

asyncio.run(main())
END
"""  # noqa: E501  # to be copied


def run_sandbox(
    bootstrap: str | None, port: int, data: Path | None, config: Path | None, settings: Settings
) -> int:
    """Run until SIGINT or SIGTERM; 0 then. Raises `HeadwaterError` when the broker ends by itself.

    `bootstrap`: a Kafka to use instead of one of our own, here or in the environment; with it
    this returns at once. `data`: where records stay between runs; None is a temporary folder.
    `config`: the settings file, for the commands to name.
    """
    if bootstrap is None:
        bootstrap = os.environ.get(BOOTSTRAP_VARIABLE)
    if bootstrap is not None:
        print(f"Using the Kafka at {bootstrap} (--bootstrap or {BOOTSTRAP_VARIABLE}).", flush=True)
        _create_topics(bootstrap, settings)
        print(next_commands(bootstrap, settings.topics, config), flush=True)
        return 0
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    print("Starting Apache Kafka (the first start ever downloads it, 45 MB) ...", flush=True)
    with LocalKafka(data, port=port) as broker:
        _create_topics(broker.bootstrap, settings)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        fate = f"; its records stay in {data}" if data else " and removes its records"
        print(f"Apache Kafka listens on {broker.bootstrap}; Ctrl-C ends it{fate}.")
        print(next_commands(broker.bootstrap, settings.topics, config), flush=True)
        while not stop.wait(_LOOK_S):
            if broker.pid is None:
                raise HeadwaterError("the local Kafka ended; start `headwater sandbox` again")
        print("Stopping Apache Kafka ...", flush=True)
    return 0


def _create_topics(bootstrap: str, settings: Settings) -> None:
    kafka = settings.kafka.model_copy(update={"bootstrap_servers": bootstrap})
    asyncio.run(create_topics(kafka, settings.topics))


def next_commands(bootstrap: str, topics: TopicsSettings, config: Path | None) -> str:
    """Which topics there are, and lines to copy."""
    names = ", ".join((topics.events, topics.recommendations, topics.dead_letter))
    options = f"--bootstrap {bootstrap}" + (f" --config {config}" if config else "")
    return f"Its topics: {names}\n" + _NEXT.format(
        options=options,
        bootstrap=bootstrap,
        events=topics.events,
        recommendations=topics.recommendations,
    )
