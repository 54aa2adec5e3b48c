"""Hostile model folders: refused in one line, and nothing of them runs."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.errors import ConfigurationError
from service.model.backbone import make_backbone
from service.model.text_encoder import TextEncoder
from service.settings import TextSettings
from tests.model.encoders import write_encoder
from tests.model.examples import pretrained_settings, save_gpt2

RAN = "HEADWATER_TEST_RAN"  # set in the environment by whatever of a folder runs


class Planted:
    """Pickled, it runs when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"import os; os.environ[{RAN!r}] = '1'",)


@pytest.fixture(autouse=True)
def _nothing_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RAN, raising=False)


def configured(folder: Path, **changed: object) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))


def own_code(folder: Path) -> None:
    (folder / "own.py").write_text(f"import os\nos.environ[{RAN!r}] = '1'\n")
    names = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    configured(folder, model_type="own", auto_map=names)


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Planted()))


def a_pickle_by_another_name(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Planted()))


def files_outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    named = {"weight_map": {"wpe.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(named))


def an_adapter(folder: Path) -> None:
    told = {"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Planted()))


def a_kernel(folder: Path) -> None:
    configured(folder, _attn_implementation="somebody/kernel")


def a_kernel_by_name(folder: Path) -> None:
    configured(folder, _attn_implementation="flash_attention_2")


def quantized(folder: Path) -> None:
    configured(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})


def wide(folder: Path) -> None:
    configured(folder, n_embd=10**7, n_inner=10**9)


def endless(folder: Path) -> None:
    configured(folder, n_layer=10**9)


def many_words(folder: Path) -> None:
    configured(folder, vocab_size=10**12)


def a_long_config(folder: Path) -> None:
    configured(folder, note="x" * 2_000_000)


def a_deep_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


HOSTILE: list[tuple[Callable[[Path], None], str]] = [
    (own_code, "custom code"),
    (pickled_weights, "model.safetensors"),
    (a_pickle_by_another_name, "header"),
    (files_outside, "names files outside of it"),
    (an_adapter, "it holds an adapter"),
    (a_kernel, "attention kernel"),
    (a_kernel_by_name, "attention kernel"),
    (quantized, "it is quantized"),
    (wide, "weights, its files have"),
    (endless, "n_layer = 1000000000"),
    (many_words, "weights, its files have"),
    (a_long_config, "larger than"),
    (a_deep_config, "recursion"),
]


@pytest.mark.parametrize(("spoil", "told"), HOSTILE)
def test_a_hostile_backbone_is_one_line(
    spoil: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    folder = save_gpt2(tmp_path / "model")
    spoil(folder)
    with pytest.raises(ConfigurationError, match=told) as caught:
        make_backbone(pretrained_settings(folder))
    assert "\n" not in str(caught.value)
    assert RAN not in os.environ


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (own_code, "custom code"),
        (pickled_weights, "model.safetensors"),
        (files_outside, "names files outside of it"),
        (an_adapter, "it holds an adapter"),
    ],
)
def test_a_hostile_text_encoder_is_one_line(
    spoil: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    write_encoder(folder)
    spoil(folder)
    with pytest.raises(ConfigurationError, match=told) as caught:
        TextEncoder(str(folder), TextSettings(), torch.device("cpu"))
    assert "\n" not in str(caught.value)
    assert RAN not in os.environ


def test_code_beside_a_known_model_is_left_alone(tmp_path: Path) -> None:
    folder = save_gpt2(tmp_path / "model")
    own_code(folder)
    configured(folder, model_type="gpt2")
    make_backbone(pretrained_settings(folder))
    assert RAN not in os.environ


def test_nothing_in_the_service_runs_what_it_loads() -> None:
    service = Path(__file__).parents[2] / "service"
    for file in service.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for word in ("trust_remote_code=True", " torch.load(", "pickle.load", "weights_only=False"):
            assert word not in text, file
