"""A pretrained encoder that turns the texts of items into vectors."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from service.domain import Float32s
from service.errors import ConfigurationError
from service.model.folders import read_config
from service.settings import TextSettings

_UNSAID = 1_000_000  # tokens: a tokenizer that says more does not know
_ENCODER_ONLY = frozenset({"mt5", "t5", "umt5"})  # a decoder of theirs is not wanted


def _family(config: PretrainedConfig) -> Any:
    return AutoModelForTextEncoding if config.model_type in _ENCODER_ONLY else AutoModel


class TextEncoder:
    """Any Hugging Face model with its tokenizer; the mean of its last states is the vector."""

    def __init__(self, name: str, settings: TextSettings, device: torch.device) -> None:
        """Blocks while it is loaded. Raises ConfigurationError where it cannot be."""
        revision = settings.revision
        disable_progress_bar()  # a log is no terminal
        try:
            config = read_config(name, revision, _family)
            model = _family(config).from_pretrained(
                name,
                revision=revision,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,  # sums over a text's tokens overflow half precision
            )
            self._model = model.to(device)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                name, revision=revision, trust_remote_code=False
            )
        except Exception as error:  # noqa: BLE001  # over a broken folder transformers raises anything
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigurationError(
                f"cannot load items.text.encoder = {name!r}: {reason} (it must be a local folder "
                "with config.json, *.safetensors and a tokenizer, or a hub id)"
            ) from None
        self._model.eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._max_tokens = min(settings.max_tokens, self._most_tokens())
        self._batch = settings.batch_items
        logging.getLogger(__name__).info("loaded text encoder %s (%s)", name, config.model_type)

    def _most_tokens(self) -> int:
        """That the tokenizer takes and the model has positions for."""
        said = int(self._tokenizer.model_max_length)
        if said < _UNSAID:
            return said
        return int(getattr(self._model.config, "max_position_embeddings", None) or said)

    @property
    def width(self) -> int:
        return int(self._model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float32s:
        """Vectors of length 1. [texts, width]"""
        found = np.zeros((len(texts), self.width), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")  # little padding
        for start in range(0, len(order), self._batch):
            places = order[start : start + self._batch]
            found[places] = self._encode([texts[place] for place in places.tolist()])
        return found

    def _encode(self, texts: list[str]) -> Float32s:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._model.device)
        states = self._model(**tokens).last_hidden_state  # [texts, tokens, width]
        read = tokens["attention_mask"][:, :, None].to(states.dtype)  # [texts, tokens, 1]
        mean: Tensor = (states * read).sum(dim=1) / read.sum(dim=1).clamp(min=1.0)
        vectors: Float32s = functional.normalize(mean.float(), dim=-1).cpu().numpy()
        return vectors
