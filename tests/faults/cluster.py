"""The Kafkas that faults strike: durable, on fixed ports."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from service.sandbox.kafka import LocalKafka, free_broker_port, new_id
from tests.faults.proxy import Proxy


class ProxiedKafka:
    """One broker. `bootstrap` is for the harness, `proxied` leads through the proxy, for the
    service: whoever comes in by it is told to come in by it again."""

    replicas = 1

    def __init__(self) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="faults-kafka-", ignore_cleanup_errors=True)
        plain, hidden, shown, controller = _free_ports(4)
        self.proxy = Proxy(shown, hidden)
        self.broker = LocalKafka(
            Path(self._data.name),
            port=plain,
            properties={
                "listeners": f"PLAINTEXT://127.0.0.1:{plain},PROXIED://127.0.0.1:{hidden},"
                f"CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},"
                f"PROXIED://127.0.0.1:{shown}",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,"
                "PROXIED:PLAINTEXT",
                "inter.broker.listener.name": "PLAINTEXT",
                "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            },
        )

    @property
    def bootstrap(self) -> str:
        return self.broker.bootstrap

    @property
    def proxied(self) -> str:
        return f"127.0.0.1:{self.proxy.port}"

    def __enter__(self) -> Self:
        self.broker.start()
        self.proxy.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.proxy.stop()
        self.broker.stop()
        self._data.cleanup()


class ThreeBrokers:
    """A cluster in which any broker may die: three replicas, of which two must have a record."""

    replicas = 3

    def __init__(self) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="faults-kafka-", ignore_cleanup_errors=True)
        ports = _free_ports(6)
        plain, controllers = ports[:3], ports[3:]
        cluster_id = new_id()
        voters = ",".join(f"{one}@127.0.0.1:{port}" for one, port in enumerate(controllers, 1))
        common = {
            "controller.quorum.voters": voters,
            "min.insync.replicas": "2",
            "offsets.topic.replication.factor": "3",
            "transaction.state.log.replication.factor": "3",
            "transaction.state.log.min.isr": "2",
        }
        self.brokers = {
            number: LocalKafka(
                Path(self._data.name) / str(number),
                port=port,
                cluster_id=cluster_id,
                properties={
                    **common,
                    "node.id": str(number),
                    "listeners": f"PLAINTEXT://127.0.0.1:{port},"
                    f"CONTROLLER://127.0.0.1:{controllers[number - 1]}",
                },
            )
            for number, port in enumerate(plain, 1)
        }

    @property
    def bootstrap(self) -> str:
        return ",".join(broker.bootstrap for broker in self.brokers.values())

    @property
    def proxied(self) -> str:
        return self.bootstrap

    def __enter__(self) -> Self:
        with ThreadPoolExecutor(3) as together:  # none is ready before another is there
            for started in [together.submit(one.start) for one in self.brokers.values()]:
                started.result()
        return self

    def __exit__(self, *failure: object) -> None:
        with ThreadPoolExecutor(3) as together:
            for broker in self.brokers.values():
                together.submit(broker.stop)
        self._data.cleanup()


Kafka = ProxiedKafka | ThreeBrokers


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_broker_port())
    return list(ports)
