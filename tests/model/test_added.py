import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from service.errors import ConfigurationError
from service.model.added import blocks, require_trainable
from service.model.recommender import Recommender
from service.settings import (
    TrainAdapter,
    Trained,
    TrainFull,
    TrainHead,
    TrainLora,
    TrainTop,
)
from tests.model.examples import (
    FAMILIES,
    pretrained_settings,
    save_gpt2,
    save_t5,
    small_settings,
)

ADDED = [TrainAdapter(width=3), TrainLora(rank=2)]
ROWS = torch.tensor([[1, 2, 3, 4]])


def a_model(folder: Path, save: Callable[[Path], Path] = save_gpt2) -> Recommender:
    """A pretrained one that knows some items, between projections."""
    model = Recommender.new(pretrained_settings(save(folder), dim=5))
    model.grow(9)
    return model.eval()


def trained_names(model: Recommender) -> set[str]:
    return {name for name, weight in model.backbone.named_parameters() if weight.requires_grad}


def stir(model: Recommender) -> None:
    """Change whatever may be trained."""
    with torch.no_grad():
        for weight in model.backbone.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.1)


@pytest.mark.parametrize("save", FAMILIES)
@pytest.mark.parametrize("trained", ADDED)
def test_added_weights_change_nothing_until_trained_and_are_built_again_from_the_shape(
    save: Callable[[Path], Path], trained: Trained, tmp_path: Path
) -> None:
    model = a_model(tmp_path, save)
    with torch.inference_mode():
        before = model(ROWS)
        model.backbone.train_only(trained)
        torch.testing.assert_close(model(ROWS), before)
        stir(model)
        after = model(ROWS)
        again = Recommender.from_weights(model.shape, model.state_dict())
        torch.testing.assert_close(again(ROWS), after)
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("trained", ADDED)
def test_a_copy_has_added_weights_of_its_own(trained: Trained, tmp_path: Path) -> None:
    model = a_model(tmp_path)
    model.backbone.train_only(trained)
    stir(model)
    copied = copy.deepcopy(model)
    with torch.inference_mode():
        states = model(ROWS)
        stir(model)
        torch.testing.assert_close(copied(ROWS), states)
        assert not torch.allclose(model(ROWS), states)


PROJECTIONS = {"enter.weight", "enter.bias", "leave.weight", "leave.bias"}


@pytest.mark.parametrize("save", FAMILIES)
def test_the_head_is_the_projections_alone(save: Callable[[Path], Path], tmp_path: Path) -> None:
    model = a_model(tmp_path, save)
    model.backbone.train_only(TrainHead())
    assert trained_names(model) == PROJECTIONS
    model.backbone.train_only(TrainFull())
    assert len(trained_names(model)) == len(list(model.backbone.parameters()))


def test_the_top_is_the_last_blocks_and_the_norm_behind_them(tmp_path: Path) -> None:
    model = a_model(tmp_path, save_t5)  # of two blocks
    model.backbone.train_only(TrainTop(n=1))
    of_body = trained_names(model) - PROJECTIONS
    prefixes = ("body.encoder.block.1.", "body.encoder.final_layer_norm.")
    assert of_body
    assert all(name.startswith(prefixes) for name in of_body)


def test_a_frozen_body_drops_nothing_while_what_is_trained_does() -> None:
    model = Recommender.new(small_settings(dropout=0.5))
    body = model.backbone.body
    rates = [one for one in body.modules() if isinstance(one, nn.Dropout)]
    model.train()
    assert all(one.training for one in rates)
    model.backbone.train_only(TrainTop(n=1))
    model.train()
    inside = [one for one in blocks(body).modules() if isinstance(one, nn.Dropout)]
    assert all(one.training for one in inside)
    assert [one.training for one in rates].count(False) == len(rates) - len(inside) > 0
    model.backbone.train_only(TrainLora(rank=2))
    model.train()
    assert not any(one.training for one in rates)
    assert model.training


def test_more_blocks_than_there_are_is_one_line(tmp_path: Path) -> None:
    model = a_model(tmp_path)
    with pytest.raises(ConfigurationError, match=r"trainer\.trained\.n = 2 is more than the 1"):
        model.backbone.train_only(TrainTop(n=2))


def test_lora_and_adapters_need_something_to_be_added_to() -> None:
    with pytest.raises(ConfigurationError, match="needs linear layers"):
        require_trainable(nn.LayerNorm(4), TrainLora())
    with pytest.raises(ConfigurationError, match="needs blocks"):
        require_trainable(nn.LayerNorm(4), TrainAdapter())
