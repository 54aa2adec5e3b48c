from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DistilBertConfig, DistilBertModel

from service.errors import ConfigurationError
from service.model.backbone import backbone_from_config, make_backbone
from tests.model.examples import (
    PLACES,
    pretrained_settings,
    save_bert,
    save_gpt2,
    small_settings,
)


@pytest.mark.parametrize("save", [save_gpt2, save_bert])
@pytest.mark.parametrize("dim", [8, 5])
def test_a_local_folder_gives_a_causal_body(
    save: Callable[[Path], Path], dim: int, tmp_path: Path
) -> None:
    backbone = make_backbone(pretrained_settings(save(tmp_path), dim)).eval()
    vectors = torch.randn(2, PLACES, dim)
    changed = vectors.clone()
    changed[:, 5] *= -1.0
    with torch.inference_mode():
        states, others = backbone(vectors), backbone(changed)
    assert states.shape == (2, PLACES, dim)
    torch.testing.assert_close(states[:, :5], others[:, :5])
    assert not torch.allclose(states[:, 5], others[:, 5])


def test_its_weights_are_those_of_the_folder(tmp_path: Path) -> None:
    settings = pretrained_settings(save_gpt2(tmp_path))
    one, other = make_backbone(settings), make_backbone(settings)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


def test_half_precision_is_trained_in_full(tmp_path: Path) -> None:
    backbone = make_backbone(pretrained_settings(save_gpt2(tmp_path, torch.bfloat16), dim=5))
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    again = backbone_from_config(backbone.config, 5)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["small", "gpt2", "bert"])
def test_config_and_weights_give_the_same_outputs(kind: str, tmp_path: Path) -> None:
    settings = {
        "small": lambda: small_settings(dim=5),
        "gpt2": lambda: pretrained_settings(save_gpt2(tmp_path), dim=5),
        "bert": lambda: pretrained_settings(save_bert(tmp_path), dim=5),
    }[kind]()
    backbone = make_backbone(settings).eval()
    again = backbone_from_config(backbone.config, 5)
    again.load_state_dict(backbone.state_dict())
    vectors = torch.randn(2, PLACES, 5)
    with torch.inference_mode():
        assert torch.equal(backbone(vectors), again.eval()(vectors))


def test_a_body_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    config = DistilBertConfig(
        vocab_size=5, dim=8, n_layers=1, n_heads=2, hidden_dim=16, max_position_embeddings=PLACES
    )
    DistilBertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="not causal"):
        make_backbone(pretrained_settings(tmp_path))


def nothing(folder: Path) -> None:
    folder.rmdir()


def empty(folder: Path) -> None:
    assert folder.is_dir()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def broken_weights(folder: Path) -> None:
    (save_gpt2(folder) / "model.safetensors").write_bytes(b"rubbish")


def only_config(folder: Path) -> None:
    (save_gpt2(folder) / "model.safetensors").unlink()


def too_few_places(folder: Path) -> None:
    save_gpt2(folder, places=PLACES - 1)


@pytest.mark.parametrize(
    "spoil", [nothing, empty, broken_config, broken_weights, only_config, too_few_places]
)
def test_a_folder_that_does_not_fit_is_one_line(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(ConfigurationError) as error:
        make_backbone(pretrained_settings(folder))
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
