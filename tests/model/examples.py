"""Tiny models."""

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from service.domain import ItemId
from service.model.recommender import Recommender
from service.model.vocabulary import Vocabulary
from service.settings import ModelSettings, PretrainedBackbone, SmallBackbone

PLACES = 8


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
    config = BertConfig(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=PLACES,
    )
    BertModel(config).save_pretrained(folder)
    return folder


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
