"""The programs that draw curves, each loaded only when a run begins."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

# Without a key the library would ask for one at a terminal, and wait.
_LOGIN_WITHIN_S = 1
# Its own 90 s would hold up a process that ends meanwhile.
_BEGIN_WITHIN_S = 30


class Writer(Protocol):
    """One run in one program. All of it may block and raise, making it included."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """Event files in a folder, which `tensorboard --logdir` shows."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A run in Weights & Biases. Account, host, folder and offline mode are the library's own
    business: `wandb login`, `WANDB_*`."""

    def __init__(self, project: str, run: str, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=project,
            name=run,
            config=dict(config),
            settings=wandb.Settings(
                # The log and the code are nobody else's business.
                console="off",
                disable_code=True,
                disable_git=True,
                init_timeout=_BEGIN_WITHIN_S,
                login_timeout=_LOGIN_WITHIN_S,
                silent=True,
            ),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()
