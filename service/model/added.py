"""What of a body is trained, and the weights that are added to it so that the rest may stay.

Both kinds of added weights change nothing before they are trained: an adapter (Houlsby et al.,
2019) adds to the states behind each block what a bottleneck makes of them, LoRA (Hu et al.,
2021) a product of two narrow matrices to every linear layer.
"""

from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from service.errors import ConfigurationError
from service.settings import TrainAdapter, Trained, TrainLora, TrainTop

Added = TrainAdapter | TrainLora


def added_by(trained: Trained) -> Added | None:
    """What the setting adds to a body, if anything."""
    return trained if isinstance(trained, TrainAdapter | TrainLora) else None


def added_from(plain: dict[str, Any] | None) -> Added | None:
    """What a version's shape says was added. Raises ValueError where nobody could have."""
    return None if plain is None else TypeAdapter[Added](Added).validate_python(plain)


class Adapter(nn.Module):
    """A bottleneck beside the states of one block."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.up = nn.Linear(width, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, states: Tensor) -> Tensor:
        adapted: Tensor = states + self.up(functional.gelu(self.down(states)))
        return adapted

    def after(self, block: nn.Module, read: tuple[Any, ...], output: Any) -> Any:
        """A forward hook. Blocks give states, or a tuple that begins with them."""
        if isinstance(output, Tensor):
            return self(output)
        return (self(output[0]), *output[1:])


def blocks(body: nn.Module) -> nn.ModuleList:
    """The blocks of a body, first to last; one for all layers where these share weights."""
    found = next((one for one in body.modules() if isinstance(one, nn.ModuleList)), None)
    return nn.ModuleList() if found is None else found


def top(body: nn.Module, count: int) -> tuple[nn.Module, ...]:
    """The last `count` blocks, and what reads them, such as a last norm."""
    stack = blocks(body)
    owner = next(one for one in body.modules() if stack in one.children())
    behind = list(owner.children())
    return (*stack[-count:], *behind[behind.index(stack) + 1 :])


def require_trainable(body: nn.Module, trained: Trained) -> None:
    """Raises ConfigurationError where this body cannot be trained so."""
    has = len(blocks(body))
    match trained:
        case TrainTop(n=count) if count > has:
            raise ConfigurationError(
                f"trainer.trained.n = {count} is more than the {has} blocks that can be told "
                "apart in this backbone; choose fewer, or trainer.trained.kind = full"
            )
        case TrainAdapter() if not has:
            raise ConfigurationError(
                "trainer.trained.kind = adapter needs blocks, and none was found in this "
                "backbone; choose full or head"
            )
        case TrainLora() if not any(_is_product(one) for one in body.modules()):
            raise ConfigurationError(
                "trainer.trained.kind = lora needs linear layers, and this backbone has none; "
                "choose full, top_n, adapter or head"
            )


def _is_product(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"  # as GPT-2 has


def add_adapters(body: nn.Module, hidden: int, adapter: TrainAdapter) -> nn.ModuleList:
    """One for each block, which runs it from now on; the caller holds their weights."""
    adapters = nn.ModuleList()
    for block in blocks(body):
        added = Adapter(hidden, adapter.width)
        # A bound method, which a copy of the model copies along, and no closure.
        block.register_forward_hook(added.after)
        adapters.append(added)
    return adapters


def add_lora(body: nn.Module, lora: TrainLora) -> None:
    """Put LoRA's matrices beside every linear layer, in place."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds, for those who use it

    found = [name for name, module in body.named_modules() if _is_product(module)]
    transposed = any(type(module).__name__ == "Conv1D" for module in body.modules())
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=found,
        fan_in_fan_out=transposed,
    )
    inject_adapter_in_model(config, body)


def lora_weights(body: nn.Module) -> list[torch.nn.Parameter]:
    return [weight for name, weight in body.named_parameters() if ".lora_" in name]
