"""The Kafka that faults strike: durable, on fixed ports, with a second listener behind a proxy."""

import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from service.sandbox.kafka import LocalKafka, free_broker_port
from tests.faults.proxy import Proxy


class ProxiedKafka:
    """One broker. `bootstrap` is for the harness, `proxied` leads through the proxy, for the
    service: whoever comes in by it is told to come in by it again."""

    def __init__(self) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="faults-kafka-", ignore_cleanup_errors=True)
        ports: list[int] = []
        while len(ports) < 4:
            port = free_broker_port()
            if port not in ports:
                ports.append(port)
        plain, hidden, shown, controller = ports
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.proxy.stop()
        self.broker.stop()
        self._data.cleanup()
