import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    MPNetConfig,
    MPNetModel,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
)

from service.errors import ConfigurationError
from service.model import backbone as backbone_module
from service.model.backbone import (
    _DROPOUTS,
    _KEEP_PACKED_APART,
    backbone_from_config,
    make_backbone,
    with_dropout,
)
from service.model.item_tower import Source
from service.model.recommender import Recommender
from service.settings import GruBackbone, SmallBackbone
from tests.model.examples import (
    FAMILIES,
    PLACES,
    pretrained_settings,
    save_albert,
    save_bert,
    save_gpt2,
    save_llama,
    save_roberta,
    save_t5,
    small_settings,
)


@pytest.mark.parametrize("save", FAMILIES)
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


@pytest.mark.parametrize("save", [None, *FAMILIES])
def test_config_and_weights_give_the_same_outputs(
    save: Callable[[Path], Path] | None, tmp_path: Path
) -> None:
    settings = pretrained_settings(save(tmp_path), dim=5) if save else small_settings(dim=5)
    backbone = make_backbone(settings).eval()
    again = backbone_from_config(backbone.config, 5)
    again.load_state_dict(backbone.state_dict())
    vectors = torch.randn(2, PLACES, 5)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(vectors), again.eval()(vectors))


def test_a_body_that_cannot_be_built_again_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not when the first version is loaded, which would end the service."""
    monkeypatch.setattr(backbone_module, "_counted_from", lambda _: None)
    with pytest.raises(ConfigurationError, match="cannot be built again"):
        Recommender.new(pretrained_settings(save_roberta(tmp_path)))


def test_a_pretrained_body_may_stand_beside_described_items(tmp_path: Path) -> None:
    model = Recommender.new(pretrained_settings(save_roberta(tmp_path)), (Source("image", 3),))
    assert model.tower is not None


@pytest.mark.parametrize("family", sorted(_KEEP_PACKED_APART))
def test_a_sequence_in_a_shared_row_gives_the_same_states_as_alone(family: str) -> None:
    config = {
        "model_type": family,
        "vocab_size": 5,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": PLACES,
        "sliding_window": 3,
        "initializer_range": 0.5,  # so that what leaked would show
        "pad_token_id": 0,
    }
    backbone = backbone_from_config(config, 32).eval()
    assert backbone.packs
    vectors = torch.randn(2, PLACES, 32)
    starts = [3, 6]  # of the second sequence in each row
    positions = torch.tensor([[*range(start), *range(PLACES - start)] for start in starts])
    with torch.inference_mode():
        states, as_one = backbone(vectors, positions), backbone(vectors)
        for row, start in enumerate(starts):
            alone = backbone(vectors[row : row + 1, start:])[0]
            torch.testing.assert_close(states[row, start:], alone, rtol=0, atol=1e-5)
            assert not torch.allclose(as_one[row, start:], alone, rtol=0, atol=1e-2)


@pytest.mark.parametrize("save", [save_bert, save_t5])
def test_a_body_that_would_mix_sequences_does_not_pack_them(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    backbone = make_backbone(pretrained_settings(save(tmp_path))).eval()
    assert not backbone.packs
    vectors = torch.randn(1, PLACES, 8)
    with torch.inference_mode():
        disregarded = backbone(vectors, torch.zeros(1, PLACES, dtype=torch.int64))
        torch.testing.assert_close(disregarded, backbone(vectors))


@pytest.mark.parametrize("weights", [1.0, 0.02, 0.002])
def test_a_body_that_looks_ahead_is_refused_however_small_its_weights(
    weights: float, tmp_path: Path
) -> None:
    torch.manual_seed(1)  # of the smallest weights, one draw in twenty leaks next to nothing
    config = MPNetConfig(
        vocab_size=5,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=PLACES + 2,
        initializer_range=weights,
    )
    MPNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="not causal"):
        make_backbone(pretrained_settings(tmp_path))


def test_of_t5_only_the_encoder_is_taken_with_its_own_weights(tmp_path: Path) -> None:
    backbone = make_backbone(pretrained_settings(save_t5(tmp_path)))
    encoder = T5EncoderModel.from_pretrained(tmp_path)
    assert backbone.body.state_dict().keys() == encoder.state_dict().keys()
    for name, weight in encoder.named_parameters():
        if name != "shared.weight":  # words
            assert torch.equal(backbone.body.state_dict()[name], weight)


@pytest.mark.parametrize("save", FAMILIES)
def test_the_words_of_a_body_are_left_out_and_items_enter_as_long_as_they_were(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    backbone = make_backbone(pretrained_settings(save(tmp_path), dim=64))
    rows = len(next(backbone.body.get_input_embeddings().parameters()))
    assert rows == (2 if save is save_roberta else 1)
    words = AutoModel.from_pretrained(tmp_path).get_input_embeddings().weight
    items = torch.nn.functional.normalize(torch.randn(500, 64), dim=1)
    assert backbone.enter(items).std().item() == pytest.approx(words.std().item(), rel=0.3)


def test_a_model_of_pictures_is_one_line(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="does not read a sequence") as error:
        make_backbone(pretrained_settings(tmp_path))
    assert "\n" not in str(error.value)


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


def configured(folder: Path, **changed: object) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))


def a_number_in_words(folder: Path) -> None:
    configured(save_gpt2(folder), n_layer="two")


def an_unknown_dtype(folder: Path) -> None:
    configured(save_gpt2(folder), dtype="float33")


def a_list_for_a_name(folder: Path) -> None:
    configured(save_gpt2(folder), model_type=["gpt2"])


@pytest.mark.parametrize(
    "spoil",
    [
        nothing,
        empty,
        broken_config,
        broken_weights,
        only_config,
        too_few_places,
        a_number_in_words,
        an_unknown_dtype,
        a_list_for_a_name,
    ],
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


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as error:
        make_backbone(pretrained_settings(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_wrong_in_a_config_is_named(tmp_path: Path) -> None:
    a_number_in_words(tmp_path)
    assert "Field 'n_layer' expected int, got str (value: 'two')" in refusal(tmp_path)


def test_an_unknown_activation_is_named(tmp_path: Path) -> None:
    configured(save_bert(tmp_path), hidden_act="swoosh")
    assert "it names 'swoosh', which transformers does not know" in refusal(tmp_path)


def kept_weights(folder: Path, wanted: Callable[[str], bool]) -> None:
    file = folder / "model.safetensors"
    weights = {name: weight for name, weight in load_file(file).items() if wanted(name)}
    save_file(weights, file, metadata={"format": "pt"})


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    kept_weights(save_gpt2(tmp_path), lambda _: False)
    assert "it lacks weights (h.0.attn.c_attn.bias, " in refusal(tmp_path)


def test_a_checkpoint_that_lacks_one_layer_is_refused(tmp_path: Path) -> None:
    configured(save_gpt2(tmp_path), n_layer=2)
    assert "it lacks weights (h.1.attn.c_attn.bias, " in refusal(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    configured(save_gpt2(tmp_path), n_embd=16)
    assert "it has weights of another shape (h.0.attn.c_attn.bias, " in refusal(tmp_path)


@pytest.mark.parametrize("save", [save_bert, save_albert, save_gpt2, save_llama, save_t5])
def test_embeddings_and_poolers_may_be_missing(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    kept_weights(
        save(tmp_path),
        lambda name: (
            not any(part in name for part in ("pooler", "word_emb", "wte", "tokens", "shared"))
        ),
    )
    make_backbone(pretrained_settings(tmp_path))


@pytest.mark.parametrize("save", FAMILIES)
def test_a_pretrained_body_drops_what_the_settings_say_and_else_what_it_did(
    save: Callable[[Path], Path], tmp_path: Path
) -> None:
    settings = pretrained_settings(save(tmp_path))
    own = AutoConfig.from_pretrained(tmp_path).to_dict()
    kept = make_backbone(settings.model_copy(update={"dropout": None})).config
    names = [name for name in own if name in _DROPOUTS]
    assert names
    assert [kept[name] for name in names] == [own[name] for name in names]

    backbone = make_backbone(settings.model_copy(update={"dropout": 0.35})).train()
    assert {backbone.config[name] for name in names} == {0.35}
    dropped = {module.p for module in backbone.modules() if isinstance(module, nn.Dropout)}
    assert dropped <= {0.35, 0.0}  # ALBERT's classifier
    vectors = torch.randn(1, PLACES, settings.dim)
    assert not torch.equal(backbone(vectors), backbone(vectors))
    again = backbone_from_config(backbone.config, settings.dim)
    assert {again.config[name] for name in names} == {0.35}
    for dropout, expected in ((None, 0.35), (0.1, 0.1)):
        later = settings.model_copy(update={"dropout": dropout})
        changed = backbone_from_config(with_dropout(again.config, later), settings.dim)
        assert {changed.config[name] for name in names} == {expected}


def test_a_small_body_drops_a_fifth_unless_the_settings_say_otherwise() -> None:
    settings = small_settings()
    shares = [
        make_backbone(settings.model_copy(update={"dropout": dropout})).config["resid_pdrop"]
        for dropout in (None, 0.0, 0.4)
    ]
    assert shares == [0.2, 0.0, 0.4]


@pytest.mark.parametrize("backbone", [SmallBackbone(dim=8, layers=1, heads=2), GruBackbone(dim=8)])
def test_a_stored_model_drops_what_the_settings_say_now(
    backbone: SmallBackbone | GruBackbone,
) -> None:
    settings = small_settings(dropout=0.4).model_copy(update={"backbone": backbone})
    model = Recommender.new(settings)
    now = settings.model_copy(update={"dropout": 0.1})
    shape = Recommender.with_dropout(model.shape, now)
    again = Recommender.from_weights(shape, dict(model.state_dict()))
    assert again.shape == Recommender.new(now).shape != model.shape
