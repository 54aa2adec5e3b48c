"""What a single-node Apache Kafka reads at its start, as text: no I/O here."""

from collections.abc import Mapping

LOG_FOLDER = "log"  # relative to the data folder, which is the broker's working directory

# Short, because its end is quoted to the user when the broker does not start.
LOG4J2_PROPERTIES = """\
rootLogger.level = WARN
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %-5p %c{1}: %m%n
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = INFO
"""


def server_properties(port: int, controller_port: int, replaced: Mapping[str, str]) -> str:
    """The file for one broker that is also its own controller, on the loopback interface."""
    address = f"PLAINTEXT://127.0.0.1:{port}"
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "listeners": f"{address},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": address,
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "log.dirs": LOG_FOLDER,
        # A misspelt topic is an error here as it is in production.
        "auto.create.topics.enable": "false",
        # One broker has nobody to replicate to.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # A first join waits until every partition of these exists; the defaults are 50.
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        # A killed broker registers again only when its old session has run out (default 9 s).
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # The default of 128 MB is half of our heap.
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    } | dict(replaced)
    return "".join(f"{key}={value}\n" for key, value in properties.items())
