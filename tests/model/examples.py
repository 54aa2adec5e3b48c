"""Tiny models."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
)

from service.domain import ItemId
from service.model.recommender import Recommender
from service.model.vocabulary import Vocabulary
from service.settings import ModelSettings, PretrainedBackbone, SmallBackbone

PLACES = 8
LIKE_BERT: dict[str, Any] = {
    "vocab_size": 5,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": PLACES,
}


def small_settings(dropout: float = 0.0, dim: int = 8) -> ModelSettings:
    backbone = SmallBackbone(dim=8, layers=1, heads=2)
    return ModelSettings(backbone=backbone, dim=dim, max_length=PLACES, dropout=dropout)


def pretrained_settings(folder: Path, dim: int = 8) -> ModelSettings:
    return ModelSettings(
        backbone=PretrainedBackbone(name=str(folder)), dim=dim, max_length=PLACES, dropout=0.0
    )


def save_gpt2(folder: Path, dtype: torch.dtype = torch.float32, places: int = PLACES) -> Path:
    config = GPT2Config(
        vocab_size=5,
        n_positions=places,
        n_embd=8,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    body = GPT2Model(config)
    for parameter in body.parameters():
        parameter.data = parameter.data.to(dtype)
    body.save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    config = BertConfig(**LIKE_BERT)
    BertModel(config).save_pretrained(folder)
    return folder


def save_llama(folder: Path) -> Path:
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        max_position_embeddings=PLACES,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=4,
    )
    LlamaModel(config).save_pretrained(folder)
    return folder


def save_t5(folder: Path) -> Path:
    """Encoder and decoder, as they come."""
    config = T5Config(vocab_size=5, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    T5Model(config).save_pretrained(folder)
    return folder


def save_distilbert(folder: Path) -> Path:
    config = DistilBertConfig(
        vocab_size=5, dim=8, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=PLACES
    )
    DistilBertModel(config).save_pretrained(folder)
    return folder


def save_albert(folder: Path) -> Path:
    """It reads narrower vectors than its states are."""
    config = AlbertConfig(
        **LIKE_BERT, embedding_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    AlbertModel(config).save_pretrained(folder)
    return folder


def save_electra(folder: Path) -> Path:
    """It reads narrower vectors than its states are."""
    config = ElectraConfig(**LIKE_BERT, embedding_size=4)
    ElectraModel(config).save_pretrained(folder)
    return folder


def save_roberta(folder: Path) -> Path:
    """Its positions are counted from the padding's id on."""
    config = RobertaConfig(**LIKE_BERT | {"max_position_embeddings": PLACES + 2, "pad_token_id": 1})
    RobertaModel(config).save_pretrained(folder)
    return folder


FAMILIES = [
    save_gpt2,
    save_llama,
    save_bert,
    save_roberta,
    save_distilbert,
    save_albert,
    save_electra,
    save_t5,
]


def item_ids(count: int) -> list[ItemId]:
    return [ItemId(f"item-{number}") for number in range(1, count + 1)]


def a_vocabulary(items: int) -> Vocabulary:
    return Vocabulary((ItemId(""), *item_ids(items)))


def a_recommender(items: int, dim: int = 8) -> Recommender:
    """One that knows `items` items by random vectors, ready to be read."""
    model = Recommender.new(small_settings(dim=dim))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model.grow(items + 1)
    return model.eval()
