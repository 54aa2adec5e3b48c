"""A stack of gated recurrent units (Cho et al., 2014) as transformers has its bodies.

GRU4Rec (Hidasi et al., 2016) showed it on sessions. It reads any length and needs no
positions; sequences that shared a row would run into each other.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class GruConfig(PretrainedConfig):
    """Width, layers, and the share of states dropped before each layer."""

    model_type = "headwater_gru"
    hidden_size: int = 64
    num_hidden_layers: int = 1
    dropout: float = 0.0


class Gru(PreTrainedModel):
    """Reads `inputs_embeds` [batch, length, hidden] only."""

    config_class = GruConfig
    config: GruConfig

    def __init__(self, config: GruConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            nn.GRU(width, width, batch_first=True) for _ in range(config.num_hidden_layers)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, inputs_embeds: Tensor, use_cache: bool = False) -> BaseModelOutput:
        states = inputs_embeds  # [batch, length, hidden]
        for layer in self.layers:
            states = layer(self.drop(states))[0]
        return BaseModelOutput(last_hidden_state=states)

    def train(self, mode: bool = True) -> "Gru":
        """The layers are always in training, which is the same for them: on CUDA no gradient goes
        through those that are not."""
        super().train(mode)
        self.layers.train()
        return self

    def _init_weights(self, module: Any) -> None:
        """torch's own initialisation of a GRU is the usual one."""


AutoConfig.register(GruConfig.model_type, GruConfig)
AutoModel.register(GruConfig, Gru)
