"""`headwater sandbox`: a Kafka to play with, its topics made, and what to type next."""

import asyncio
import signal
import threading
from pathlib import Path
from types import FrameType

from service.errors import HeadwaterError
from service.sandbox.kafka import LocalKafka
from service.settings import Settings, TopicsSettings
from service.stream.topics import create_topics

_LOOK_S = 0.5

_NEXT = """\
Apache Kafka listens on {bootstrap}; its topics: {names}
Ctrl-C ends it{fate}.

In a second terminal, the service:

headwater serve --bootstrap {bootstrap}

In a third, an event and the recommendations, with kcat:

echo 'ann:{{"user_id":"ann","item_id":"film-1","event":"view","timestamp":'$(date +%s000)'}}' |
    kcat -b {bootstrap} -P -t {events} -K :
kcat -b {bootstrap} -C -t {recommendations} -o beginning

or with nothing but Python:

python - <<'END'
import asyncio, json, time
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
async def main():
    event = dict(user_id="ann", item_id="film-1", event="view",
                 timestamp=time.time_ns() // 10**6)
    async with AIOKafkaProducer(bootstrap_servers="{bootstrap}") as producer:
        await producer.send_and_wait("{events}", json.dumps(event).encode(), key=b"ann")
    async with AIOKafkaConsumer("{recommendations}", bootstrap_servers="{bootstrap}",
                                auto_offset_reset="earliest") as recommendations:
        print((await recommendations.getone()).value.decode())
asyncio.run(main())
END
"""


def run_sandbox(port: int, data: Path | None, settings: Settings) -> int:
    """Run until SIGINT or SIGTERM; 0 then. Raises `HeadwaterError` when the broker ends by itself.

    `data`: where records stay between runs; None is a temporary folder.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    print("Starting Apache Kafka (the first start ever downloads it, 45 MB) ...", flush=True)
    with LocalKafka(data, port=port) as broker:
        kafka = settings.kafka.model_copy(update={"bootstrap_servers": broker.bootstrap})
        asyncio.run(create_topics(kafka, settings.topics))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
        print(next_commands(broker.bootstrap, settings.topics, kept=data), flush=True)
        while not stop.wait(_LOOK_S):
            if broker.pid is None:
                raise HeadwaterError("the local Kafka ended; start `headwater sandbox` again")
        print("Stopping Apache Kafka ...", flush=True)
    return 0


def next_commands(bootstrap: str, topics: TopicsSettings, kept: Path | None) -> str:
    return _NEXT.format(
        bootstrap=bootstrap,
        names=", ".join((topics.events, topics.recommendations, topics.dead_letter)),
        events=topics.events,
        recommendations=topics.recommendations,
        fate=f"; its records stay in {kept}" if kept else " and removes its records",
    )
