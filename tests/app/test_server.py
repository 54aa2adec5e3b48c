"""A start that fails lets go of what it had started."""

import asyncio
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from service.app import server
from service.app.server import Server
from service.errors import ConfigurationError
from service.settings import (
    AdminSettings,
    ModelSettings,
    Settings,
    SmallBackbone,
    StorageSettings,
)

FAULT = ConfigurationError("set it right")


class Stage:
    """Stands for the source or the sink."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.stopped = False
        self.failure: BaseException | None = None
        self.fails = False

    async def start(self) -> None:
        if self.fails:
            raise FAULT

    async def stop(self) -> None:
        self.stopped = True

    async def commit(self, offsets: object) -> None: ...


async def fail(*_: object) -> None:
    raise FAULT


async def succeed(*_: object) -> None: ...


def settings(folder: Path) -> Settings:
    return Settings(
        admin=AdminSettings(port=0),
        model=ModelSettings(backbone=SmallBackbone(dim=16, layers=1, heads=1)),
        storage=StorageSettings(root=folder),
    )


@pytest.mark.parametrize("step", ["topics", "champion", "sink", "source"])
def test_a_start_that_fails_closes_what_it_opened(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, sink = Stage(), Stage()
    source.fails, sink.fails = step == "source", step == "sink"

    def stage(found: Stage) -> Any:
        return lambda *_: found

    def no_champion(*_: object) -> None:
        raise FAULT

    monkeypatch.setattr(server, "Source", stage(source))
    monkeypatch.setattr(server, "Sink", stage(sink))
    monkeypatch.setattr(server, "require_topics", fail if step == "topics" else succeed)
    if step == "champion":
        monkeypatch.setattr(server, "first_servable", no_champion)
    made = Server(settings(tmp_path))

    with pytest.raises(ConfigurationError, match="set it right"):
        asyncio.run(made.run(asyncio.Event()))

    assert source.stopped
    assert sink.stopped
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{made._admin.port}/livez", timeout=5)
    for thread in (made._scoring_thread, made._loading_thread):
        with pytest.raises(RuntimeError, match="after shutdown"):
            thread.submit(print)
