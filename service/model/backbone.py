"""The sequence backbone: any Hugging Face body that reads item vectors and is causal."""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    GPT2Config,
    PretrainedConfig,
    PreTrainedModel,
)

from service.errors import ConfigurationError
from service.model.added import (
    Added,
    add_adapters,
    add_lora,
    added_by,
    lora_weights,
    require_trainable,
    top,
)
from service.model.folders import read_config
from service.model.gru import Gru, GruConfig
from service.settings import (
    GruBackbone,
    ModelSettings,
    PretrainedBackbone,
    SmallBackbone,
    TrainAdapter,
    Trained,
    TrainFull,
    TrainLora,
    TrainTop,
)

# No body may look ahead by more than the noise of its arithmetic: 0 in all that are causal, and
# 1e-3 in one that is not but whose weights are small.
_LEAK_TOLERANCE = 1e-5
# Encoders to which `is_decoder` means nothing, or a decoder with cross-attention. They read
# through a causal mask instead; of T5 and its kin only the encoder is taken.
_READ_THROUGH_A_MASK = frozenset({"albert", "distilbert", "mt5", "t5", "umt5"})
# Families of which a test shows that positions keep sequences in one row apart.
_KEEP_PACKED_APART = frozenset(
    {"gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo", "phi", "qwen2", "qwen3"}
)

# What transformers' configs call the share of states, or of attention, that is dropped.
_DROPOUTS = (
    "activation_dropout",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "dropout",
    "dropout_rate",
    "embd_dropout",
    "embd_pdrop",
    "embedding_dropout",
    "embed_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_dropout",
    "resid_pdrop",
)
_NAMED_WEIGHTS = 3  # in a message
_CHOOSE = "choose a text decoder, or an encoder such as BERT or T5"


class Backbone(nn.Module):
    """Maps item vectors [batch, length, dim] to states [batch, length, dim], causally.

    Sequences are padded at the end, where causality keeps padding from being seen, so the
    body needs no mask of the padding. A row may hold several sequences one after the other
    when `positions` [batch, length] begin at 0 with each, and `packs` is true: otherwise the
    positions are disregarded.
    """

    added: Added | None = None  # to the body

    def __init__(self, body: PreTrainedModel, dim: int) -> None:
        super().__init__()
        hidden = int(body.config.hidden_size)
        # ALBERT and ELECTRA widen what they read by themselves.
        read = int(getattr(body.config, "embedding_size", hidden))
        self.body = body
        self.enter = nn.Identity() if read == dim else nn.Linear(dim, read)
        self.leave = nn.Identity() if hidden == dim else nn.Linear(hidden, dim)
        self.adapters = nn.ModuleList()
        self._learning: tuple[nn.Module, ...] = (body,)  # parts of the body that are trained

    @property
    def packs(self) -> bool:
        """Whether sequences that share a row are kept apart by their positions."""
        return self.body.config.model_type in _KEEP_PACKED_APART

    def forward(self, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        entered = self.enter(vectors)
        if self.body.config.model_type in _READ_THROUGH_A_MASK:
            output = self.body(
                inputs_embeds=entered, attention_mask=_causal_mask(entered), use_cache=False
            )
        elif positions is not None and self.packs:
            output = self.body(inputs_embeds=entered, position_ids=positions, use_cache=False)
        else:
            output = self.body(inputs_embeds=entered, use_cache=False)
        states: Tensor = self.leave(output.last_hidden_state)  # [batch, length, dim]
        return states

    def add(self, added: Added) -> None:
        """Put these weights beside the body's; nothing changes before they are trained."""
        self.added = added
        match added:
            case TrainAdapter():
                hidden = int(self.body.config.hidden_size)
                self.adapters = add_adapters(self.body, hidden, added)
            case TrainLora():
                add_lora(self.body, added)

    def train_only(self, trained: Trained) -> None:
        """Train this of the body; what it needs is added. The rest is frozen.

        Raises ConfigurationError where the body cannot be trained so.
        """
        require_trainable(self.body, trained)
        wanted = added_by(trained)
        if wanted is not None and self.added is None:
            self.add(wanted)
        match trained:
            case TrainFull():
                self._learning = (self.body,)
            case TrainTop(n=count):
                self._learning = top(self.body, count)
            case _:
                self._learning = ()
        self.body.requires_grad_(False)
        for part in self._learning:
            part.requires_grad_(True)
        for weight in lora_weights(self.body):
            weight.requires_grad_(True)

    def train(self, mode: bool = True) -> "Backbone":
        """What is frozen is never in training mode: it would drop states that nothing learns
        to do without."""
        super().train(mode)
        self.body.eval()
        for part in self._learning:
            part.train(mode)
        return self

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` needs, as plain data."""
        plain: dict[str, Any] = self.body.config.to_dict()
        return plain


def make_backbone(settings: ModelSettings) -> Backbone:
    """A new backbone with the weights it starts from.

    Raises ConfigurationError when the named model cannot be loaded or looks ahead.
    """
    spread = None
    match settings.backbone:
        case SmallBackbone() as small:
            body = AutoModel.from_config(_small_config(small, settings))
        case GruBackbone(dim=dim, layers=layers):
            body = Gru(
                GruConfig(hidden_size=dim, num_hidden_layers=layers, dropout=settings.own_dropout)
            )
        case PretrainedBackbone() as pretrained:
            body = _load(pretrained, settings)
            spread = _take_out_words(body)
    try:
        backbone = Backbone(body, settings.dim)
        if spread is not None and isinstance(backbone.enter, nn.Linear):
            # Item vectors of length 1 enter as long as the words did that the body knows.
            nn.init.normal_(backbone.enter.weight, std=spread)
            nn.init.zeros_(backbone.enter.bias)
        _refuse_lookahead(backbone, settings)
    except (ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        raise ConfigurationError(
            "model.backbone: this kind of model does not read a sequence of "
            f"{settings.max_length} vectors ({_reason(error)}); {_CHOOSE}"
        ) from None
    return backbone


def backbone_from_config(config: dict[str, Any], dim: int) -> Backbone:
    """A backbone of the shape that `Backbone.config` told; its weights are yet to be loaded."""
    plain = dict(config)
    made = AutoConfig.for_model(plain.pop("model_type"), **plain)
    return Backbone(_family(made).from_config(made, trust_remote_code=False), dim)


def _family(config: PretrainedConfig) -> Any:
    """The class that makes a body: for T5, one without its decoder."""
    masked = config.model_type in _READ_THROUGH_A_MASK
    return AutoModelForTextEncoding if masked else AutoModel


def _causal_mask(vectors: Tensor) -> Tensor:
    """What is added to attention scores: -inf where a place would see a later one."""
    length = vectors.shape[1]
    blocked = torch.full((length, length), -torch.inf, dtype=vectors.dtype, device=vectors.device)
    return blocked.triu(1)[None, None]  # [1, 1, length, length]


def _small_config(small: SmallBackbone, settings: ModelSettings) -> PretrainedConfig:
    dropout = settings.own_dropout
    return GPT2Config(
        vocab_size=1,  # items are embedded by the item table, not by the body
        n_positions=settings.max_length,
        n_embd=small.dim,
        n_layer=small.layers,
        n_head=small.heads,
        # As GPT-2's own to three digits; that one's tanh takes four times as long where it is not
        # vectorised, and a seventh of a forward pass.
        activation_function="gelu",
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=0,
        eos_token_id=0,
    )


def _load(pretrained: PretrainedBackbone, settings: ModelSettings) -> PreTrainedModel:
    name = pretrained.name
    try:
        config = read_config(name, pretrained.revision, _family)
        if config.model_type not in _READ_THROUGH_A_MASK:
            config.is_decoder = True  # BERT-like encoders then attend to the past only
        if settings.dropout is not None:
            _set_dropout(config, settings.dropout)
        body: PreTrainedModel
        body, loading = _family(config).from_pretrained(
            name,
            config=config,
            revision=pretrained.revision,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,  # steps of fine-tuning vanish in half precision
            ignore_mismatched_sizes=True,  # refused below, in our words
            output_loading_info=True,
        )
    except Exception as error:  # noqa: BLE001  # over a broken folder transformers raises anything
        raise ConfigurationError(
            f"cannot load model.backbone.name = {name!r}: {_reason(error)} "
            "(it must be a local folder with config.json and *.safetensors, or a hub id)"
        ) from None
    if body.main_input_name != "input_ids":
        raise ConfigurationError(
            f"model.backbone.name = {name!r} does not read a sequence of vectors but "
            f"{body.main_input_name}; {_CHOOSE}"
        )
    if settings.dropout is not None and not any(hasattr(config, one) for one in _DROPOUTS):
        raise ConfigurationError(
            f"model.dropout is set, but {name!r} ({config.model_type}) has none: leave it unset"
        )
    _refuse_other_weights(name, body, loading)
    places = getattr(config, "max_position_embeddings", None)
    if places is not None and places < settings.max_length:
        raise ConfigurationError(
            f"model.max_length = {settings.max_length} is more than the {places} positions "
            f"that {name!r} has"
        )
    logging.getLogger(__name__).info("loaded backbone %s (%s)", name, config.model_type)
    return body


def with_dropout(config: dict[str, Any], settings: ModelSettings) -> dict[str, Any]:
    """A body's config with the dropout of the settings: that is no part of what weights mean, and
    may change between starts."""
    if settings.dropout is None and isinstance(settings.backbone, PretrainedBackbone):
        return config
    return config | {name: settings.own_dropout for name in _DROPOUTS if name in config}


def _set_dropout(config: PretrainedConfig, dropout: float) -> None:
    """Have a body drop this share, by whichever names it knows it."""
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)


def _take_out_words(body: PreTrainedModel) -> float | None:
    """Drop the embeddings of words, which nothing reads and which are up to half of a small
    model; give the spread of their components."""
    words = body.get_input_embeddings()
    if not isinstance(words, nn.Embedding):
        return None
    pad = _counted_from(body)
    none = nn.Embedding(1 if pad is None else pad + 1, words.embedding_dim)
    nn.init.zeros_(none.weight)
    body.set_input_embeddings(none)
    body.config.vocab_size = none.num_embeddings
    for token, kept in (("pad_token_id", pad), ("bos_token_id", None), ("eos_token_id", None)):
        setattr(body.config, token, kept)
    return float(words.weight.detach().std())


def _counted_from(body: PreTrainedModel) -> int | None:
    """The padding's id where a body counts its positions from there, as RoBERTa and its kin do."""
    for part in body.modules():
        pad = getattr(part, "padding_idx", None)
        # Whole models name their padding too, and tables of words theirs.
        if isinstance(pad, int) and not isinstance(part, nn.Embedding | PreTrainedModel):
            return pad
    return None


def _refuse_lookahead(backbone: Backbone, settings: ModelSettings) -> None:
    """A body that sees the next item would look brilliant on training and be worthless."""
    backbone.eval()
    length, half = settings.max_length, settings.max_length // 2
    with torch.no_grad():
        vectors = torch.randn(1, length, settings.dim, generator=torch.Generator().manual_seed(0))
        changed = vectors.clone()
        changed[:, half:] *= -1.0  # a shift of all components would vanish in a layer norm
        ahead = (backbone(vectors) - backbone(changed))[:, :half].abs().max().item()
    if ahead > _LEAK_TOLERANCE:
        raise ConfigurationError(
            "model.backbone: this model looks at later events (it is not causal), so it cannot "
            f"predict the next one; {_CHOOSE}"
        )


def _refuse_other_weights(name: str, body: PreTrainedModel, loading: dict[str, Any]) -> None:
    """Weights that the checkpoint lacks would be random, and nobody be told."""
    unused = {
        weight
        for weight, parameter in body.named_parameters(remove_duplicate=False)
        if parameter is getattr(body.get_input_embeddings(), "weight", None)
        or any(part.startswith("pooler") for part in weight.split("."))
    }
    missing = sorted(set(loading["missing_keys"]) - unused)
    other = sorted(weight for weight, *_ in loading["mismatched_keys"] if weight not in unused)
    for weights, fault in ((missing, "lacks weights"), (other, "has weights of another shape")):
        if weights:
            more = ", ..." if len(weights) > _NAMED_WEIGHTS else ""
            raise ConfigurationError(
                f"the files of model.backbone.name = {name!r} do not fit its config.json: "
                f"it {fault} ({', '.join(weights[:_NAMED_WEIGHTS])}{more})"
            )


def _reason(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, KeyError):
        return f"it names {error}, which transformers does not know"
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    end = next((n for n, line in enumerate(lines) if not line.endswith(":")), len(lines) - 1)
    return " ".join(lines[: end + 1])
