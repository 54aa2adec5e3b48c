"""What a pretrained model may bring: data of a size that its files account for, nothing that runs.

Code of its own is never run (`trust_remote_code=False`) and pickled weights are never read
(`use_safetensors=True`). Here stands what transformers would do all the same: read files outside
the folder, put an adapter into the weights, fetch a kernel from the hub, and make room for
whatever size a config names. All raise ValueError, with the reason.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.peft_utils import find_adapter_config_file

_MAX_CONFIG_BYTES = 1_000_000
# The deepest published models have about 130, and the widest mixtures 512 experts.
_MAX_PARTS = 1_000
# Words and poolers need not be in the files; a gigabyte holds those of any published model.
_MAX_ABSENT_WEIGHTS = 1 << 28
# What torch has. For any other transformers may fetch code.
_ATTENTION = (None, "eager", "sdpa")
# No format stores more weights than this in a byte.
_WEIGHTS_PER_BYTE = 8


def read_config(
    name: str, revision: str | None, family_of: Callable[[PretrainedConfig], Any]
) -> PretrainedConfig:
    """That of a local folder or hub id from which a model may be loaded; `family_of` a config is
    the class that makes it."""
    _require_plain_files(name, revision)
    config: PretrainedConfig = AutoConfig.from_pretrained(
        name, revision=revision, trust_remote_code=False
    )
    _require_sensible(name, config, family_of(config))
    return config


def _require_plain_files(name: str, revision: str | None) -> None:
    """Before anything of a folder, or of the hub, is read."""
    if find_adapter_config_file(name, revision=revision) is not None:
        raise ValueError("it holds an adapter (adapter_config.json): merge it into its model first")
    folder = Path(name)
    config = folder / "config.json"
    if config.is_file() and config.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(f"its config.json is larger than {_MAX_CONFIG_BYTES} bytes")
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        weights = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        outside = [file for file in set(weights.values()) if Path(file).name != file]
        if outside:
            raise ValueError(f"its {index.name} names files outside of it")


def _require_sensible(name: str, config: PretrainedConfig, family: Any) -> None:
    """Before the model of a config is made. `family` makes it."""
    plain = config.to_dict()
    for key, count in _counts(plain):
        if count > _MAX_PARTS:
            raise ValueError(f"its config.json has {key} = {count}, more than {_MAX_PARTS}")
    for one in _configs(config):
        if getattr(one, "_attn_implementation", None) not in _ATTENTION:
            raise ValueError("its config.json names an attention kernel to be fetched and run")
        if getattr(one, "quantization_config", None) is not None:
            raise ValueError("it is quantized: save it in full precision first")
    if not Path(name).is_dir():
        return
    with torch.device("meta"):  # which takes no memory
        body = family.from_config(config, trust_remote_code=False)
    wanted = sum(weight.numel() for weight in body.parameters())
    stored = sum(file.stat().st_size for file in Path(name).glob("*.safetensors"))
    if wanted > stored * _WEIGHTS_PER_BYTE + _MAX_ABSENT_WEIGHTS:
        raise ValueError(
            f"its config.json wants {wanted:,} weights, its files have {stored:,} bytes"
        )


def _configs(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """This one and those within it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _configs(value)


def _counts(plain: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """How many layers or experts a config names, also in the configs within it."""
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _counts(value)
        elif isinstance(value, int) and ("layer" in key or "expert" in key):
            yield key, value
