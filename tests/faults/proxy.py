"""A TCP proxy on the loopback interface whose network can be cut, made deaf, or slow."""

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable

_CHUNK = 64 * 1024
_START_WITHIN_S = 10.0


class Network(enum.StrEnum):
    """What the network between client and broker is like."""

    WELL = "well"
    CUT = "cut"  # connections are reset, new ones refused
    HALF_OPEN = "half_open"  # connections stay, nothing comes through
    SLOW = "slow"  # everything comes late, in order


class Proxy:
    """From `port` to `target`, in an event loop and thread of its own."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.forwarded = 0  # bytes, both ways
        self.target = target
        self._network = Network.WELL
        self._delay_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._through = asyncio.Event()

    def start(self) -> None:
        self._thread.start()
        self._do(self._begin)

    def stop(self) -> None:
        if not self._thread.is_alive():
            return
        self._do(self._finish)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def set(self, network: Network, delay_s: float = 0.0) -> None:
        """From now on, for connections that exist too. `delay_s` of each way, where it is slow."""
        self._do(lambda: self._set(network, delay_s))

    def _do(self, work: Callable[[], "asyncio.Future[None] | object"]) -> None:
        async def done() -> None:
            result = work()
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(_START_WITHIN_S)

    async def _begin(self) -> None:
        self._through.set()
        await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def _set(self, network: Network, delay_s: float) -> None:
        self._network, self._delay_s = network, delay_s
        if network is Network.HALF_OPEN:
            self._through.clear()
        else:
            self._through.set()
        if network is Network.CUT:
            await self._end()
        elif self._server is None:
            await self._listen()

    async def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _finish(self) -> None:
        await self._end()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(back)
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            for one in (writer, back):
                one.transport.abort()
                self._writers.discard(one)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side ends. What is read while it is slow waits in line for its time."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

        async def write() -> None:
            while True:
                due_s, data = await line.get()
                await asyncio.sleep(max(due_s - self._loop.time(), 0))
                await self._through.wait()
                if not data:
                    writer.transport.abort()
                    return
                writer.write(data)
                self.forwarded += len(data)
                await writer.drain()

        writing = asyncio.ensure_future(write())
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(_CHUNK):
                    await line.put((self._loop.time() + self._delay_s, data))
            await line.put((0.0, b""))
            with contextlib.suppress(OSError):
                await writing
        finally:
            writing.cancel()
