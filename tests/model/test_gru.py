import pytest
import torch

from service.errors import ConfigurationError
from service.model.gru import Gru
from service.model.recommender import Recommender
from service.settings import GruBackbone, ModelSettings, TrainAdapter, TrainLora, TrainTop
from service.trainer.challenger import Challenger
from service.trainer.step import train_step
from tests.trainer.examples import CPU, known, packed, quick_training


def gru_settings(dim: int = 8) -> ModelSettings:
    backbone = GruBackbone(dim=8, layers=2)
    return ModelSettings(backbone=backbone, dim=dim, max_length=8, dropout=0.1)


@pytest.mark.parametrize("dim", [8, 5])
def test_it_is_built_again_from_shape_and_weights(dim: int) -> None:
    model = Recommender.new(gru_settings(dim)).eval()
    model.grow(9)
    model.backbone.train_only(TrainAdapter(width=2))
    again = Recommender.from_weights(model.shape, model.state_dict())
    rows = torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        torch.testing.assert_close(again(rows), model(rows))


def test_steps_lower_the_loss_of_sequences_that_have_a_row_each() -> None:
    settings = quick_training()
    challenger = Challenger.new(gru_settings(), settings, CPU)
    challenger.learn_items([known(number) for number in range(9)])
    assert not challenger.model.backbone.packs
    batch = packed([1, 2, 3, 4], [5, 6, 7, 8, 9], together=False)
    losses = [train_step(challenger, batch, temperature=0.1, settings=settings) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_gradients_go_through_layers_that_are_frozen() -> None:
    """cuDNN has them only for layers in training; what is dropped is not."""
    model = Recommender.new(gru_settings()).train()
    model.backbone.train_only(TrainTop(n=1))
    model.train()
    body = model.backbone.body
    assert isinstance(body, Gru)
    assert all(layer.training for layer in body.layers)
    assert not body.drop.training


def test_its_top_is_its_last_layer_and_lora_has_no_place_in_it() -> None:
    backbone = Recommender.new(gru_settings()).backbone
    backbone.train_only(TrainTop(n=1))
    names = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert names
    assert all(name.startswith("body.layers.1.") for name in names)
    with pytest.raises(ConfigurationError, match="needs linear layers"):
        backbone.train_only(TrainLora())
