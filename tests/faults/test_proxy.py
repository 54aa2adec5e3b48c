import asyncio
from collections.abc import Iterator

import pytest

from service.sandbox.kafka import free_broker_port
from tests.faults.proxy import Network, Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    one = Proxy(free_broker_port(), free_broker_port())
    one.start()
    yield one
    one.stop()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(100):
            writer.write(data)
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, within_s: float) -> bytes:
    writer.write(b"hello")
    async with asyncio.timeout(within_s):
        return await reader.read(5)


def test_the_network_is_what_it_is_set_to(proxy: Proxy) -> None:
    async def talk() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", proxy.target)
        async with server:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await ask(reader, writer, 5) == b"hello"

            await asyncio.to_thread(proxy.set, Network.HALF_OPEN)
            with pytest.raises(TimeoutError):
                await ask(reader, writer, 0.3)
            await asyncio.to_thread(proxy.set, Network.WELL)
            async with asyncio.timeout(5):
                assert await reader.readexactly(5) == b"hello"  # late, and not lost

            await asyncio.to_thread(proxy.set, Network.SLOW, 0.3)
            with pytest.raises(TimeoutError):
                await ask(reader, writer, 0.2)
            async with asyncio.timeout(5):
                assert await reader.readexactly(5) == b"hello"

            await asyncio.to_thread(proxy.set, Network.CUT)
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", proxy.port)

            await asyncio.to_thread(proxy.set, Network.WELL)
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await ask(reader, writer, 5) == b"hello"
            writer.close()

    asyncio.run(talk())
