"""The settings tree: frozen, every key known, read once by the entry point.

Sources, strongest first: explicit overrides (command line), `HEADWATER_*` environment
(`HEADWATER_KAFKA__BOOTSTRAP_SERVERS`, two underscores between levels), the TOML file,
defaults. Behind a variable's name `_FILE` says that its value is in a file, as containers are
given secrets. A module receives its own section, never the tree.
"""

import enum
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from service.errors import ConfigurationError

ENV_PREFIX = "HEADWATER_"
ENV_LEVEL = "__"
ENV_IN_FILE = "_FILE"
# Read outside the tree: which file to load, and the Kafka that the tests use.
ENV_FILE = "HEADWATER_CONFIG"
ENV_TEST_KAFKA = "HEADWATER_TEST_KAFKA"

_OWN_DROPOUT = 0.2

_NOT_A_SECTION = ("model_type", "model_attributes_type")  # as pydantic calls these faults

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SecurityProtocol(enum.StrEnum):
    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


class SaslMechanism(enum.StrEnum):
    PLAIN = "PLAIN"
    SCRAM_SHA_256 = "SCRAM-SHA-256"
    SCRAM_SHA_512 = "SCRAM-SHA-512"
    OAUTHBEARER = "OAUTHBEARER"


class TokenFile(Section):
    """A token that something else keeps fresh; the file is read at each connection."""

    kind: Literal["file"] = "file"
    path: Path = Field(description="Holds the token and nothing else.")


class ClientCredentials(Section):
    """Tokens of an OAuth 2 server for this client (RFC 6749, 4.4), fetched before they expire."""

    kind: Literal["client"] = "client"
    token_url: str = Field(
        pattern=r"^https://[^@\s]+$", description="The server's token endpoint; HTTPS alone."
    )
    client_id: str
    client_secret: SecretStr
    scope: str | None = Field(default=None, description="What is asked for; the server's default.")
    ca_file: Path | None = Field(
        default=None, description="Certificates to trust; the system's when unset."
    )


OAuth = Annotated[TokenFile | ClientCredentials, Field(discriminator="kind")]


class Delivery(enum.StrEnum):
    AT_LEAST_ONCE = "at_least_once"
    EXACTLY_ONCE = "exactly_once"


class KafkaSettings(Section):
    """Where Kafka is and how to talk to it."""

    bootstrap_servers: str = Field(
        default="localhost:9092", description="HOST:PORT, several separated by commas."
    )
    group_id: str = Field(
        default="headwater",
        description="The consumer group: replicas that share partitions share it.",
    )
    group_instance_id: str | None = Field(
        default=None,
        description="Of this replica alone, and the same after a restart: static membership. It "
        "keeps its partitions while it is away for no longer than `session_timeout_s`.",
    )
    client_id: str = Field(
        default="headwater", description="How this client is named in the broker's logs and quotas."
    )
    delivery: Delivery = Field(
        default=Delivery.AT_LEAST_ONCE,
        description="How often a recommendation is there after a failure: at least once, always "
        "with the same rec_id, or exactly once to readers with isolation.level=read_committed.",
    )
    security_protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    ssl_ca_file: Path | None = Field(
        default=None,
        description="Certificates to trust; the system's when unset. Certificate and host name of "
        "a broker are always verified.",
    )
    sasl_mechanism: SaslMechanism = SaslMechanism.PLAIN
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    oauth: OAuth | None = Field(
        default=None, description="Where tokens for `OAUTHBEARER` come from: `file` or `client`."
    )
    connect_timeout_s: PositiveFloat = Field(
        default=10.0, description="At start, until a broker must have answered."
    )
    # aiokafka's 10 s loses the membership when a load spike stalls the loop for that long.
    session_timeout_s: PositiveFloat = Field(
        default=30.0, description="A replica silent for this long loses its partitions."
    )
    request_timeout_s: PositiveFloat = Field(
        default=40.0, description="Until a request to a broker counts as failed."
    )

    @field_validator("bootstrap_servers")
    @classmethod
    def _names_a_server(cls, servers: str) -> str:
        if not servers.strip(", "):
            raise ValueError("is empty; name a broker as HOST:PORT, several separated by commas")
        return servers


class TopicsSettings(Section):
    """Topic names, and what `doctor --create` makes of those that are missing."""

    events: str = Field(default="events", description="Read: behaviour events.")
    items: str | None = Field(
        default=None, description="Read: the catalogue, a compacted topic; none when unset."
    )
    recommendations: str = Field(
        default="recommendations", description="Written: one record an answered event."
    )
    dead_letter: str = Field(
        default="events.dead-letter", description="Written: records that cannot become an event."
    )
    partitions: PositiveInt = Field(
        default=4, description="Of a topic that `doctor --create` makes."
    )
    replication_factor: PositiveInt = Field(
        default=1, description="Of a topic that `doctor --create` makes."
    )


class FieldsSettings(Section):
    """The users' names for our fields; a dotted name reads a nested object."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    event: str = "event"
    timestamp: str = "timestamp"
    event_id: str = "event_id"
    value: str = "value"
    context: str = "context"


class EventsSettings(Section):
    """What counts as an event."""

    kinds: tuple[str, ...] = Field(
        default=("view", "click", "cart", "buy", "rating", "impression"),
        description="Kinds that are accepted; any other is dead-lettered.",
    )
    shown: tuple[str, ...] = Field(
        default=("impression",),
        description="Kinds that tell what a user was shown, not what they did: no part of a "
        "history, never a target, never answered. The click head learns from them.",
    )
    negative: tuple[str, ...] = Field(
        default=(),
        description="Kinds by which users turn an item down, such as `return` or `dislike`: it is "
        "hidden from them while it is remembered, and training pushes it away.",
    )
    weights: dict[str, Annotated[float, Field(ge=0.0)]] = Field(
        default={},
        description="How much an event of a kind counts in training, beside the others: 0 or more; "
        "1 for kinds that are not named. At 0 the model is neither taught nor asked to foretell "
        "it; histories, memory and popularity have it all the same.",
    )
    recommend_on: tuple[str, ...] | None = Field(
        default=None,
        description="Kinds that are answered with a recommendation; all but `shown` when unset, "
        "none when empty.",
    )
    erase: Annotated[str, Field(max_length=64)] = Field(
        default="erase",
        description="The kind of a record by which a user is forgotten; it needs a `user_id` and "
        "nothing else. Empty: none does that, and `headwater erase` refuses.",
    )
    max_bytes: PositiveInt = Field(default=65_536, description="Larger records are dead-lettered.")
    max_future_s: PositiveFloat = Field(
        # So a clock of ours that is an hour behind costs no event.
        default=7200.0,
        description="Events dated further ahead than this are dead-lettered.",
    )
    deduplicate: NonNegativeInt = Field(
        # Two minutes of retries, as long as Kafka's producers try, at 800 events/s in a partition.
        default=100_000,
        description="An event whose `event_id` stands up to so many offsets before it in its "
        "partition is a duplicate: counted, and neither applied, trained on nor answered. 0: off.",
    )
    fields: FieldsSettings = FieldsSettings()

    @model_validator(mode="after")
    def _kinds_fit(self) -> "EventsSettings":
        if not 0 < len(self.kinds) <= 255 or len(set(self.kinds)) != len(self.kinds):
            raise ValueError("kinds must name 1 to 255 distinct kinds")
        if self.erase in self.kinds:
            raise ValueError(f"erase and kinds both name {self.erase!r}: users would be forgotten")
        shown = set(self.shown)
        if "shown" in self.model_fields_set:  # its default may name a kind that is not accepted
            self._require_accepted("shown", shown)
        for name in ("recommend_on", "negative", "weights"):
            kinds = set(getattr(self, name) or ())
            self._require_accepted(name, kinds)
            if kinds & shown:
                raise ValueError(f"{name} and shown both name {sorted(kinds & shown)}")
        return self

    def _require_accepted(self, name: str, kinds: set[str]) -> None:
        unknown = kinds - set(self.kinds)
        if unknown:
            raise ValueError(f"{name} names kinds that are not in kinds: {sorted(unknown)}")

    def codes(self, kinds: Iterable[str]) -> list[int]:
        """The numbers by which events carry these kinds; of those that are accepted."""
        return [self.kinds.index(kind) for kind in kinds if kind in self.kinds]

    @property
    def not_done(self) -> tuple[str, ...]:
        """Kinds that tell what users were shown or turned down, not what they did."""
        return (*self.shown, *self.negative)

    @property
    def answered(self) -> tuple[str, ...]:
        """Kinds that are answered with a recommendation."""
        if self.recommend_on is not None:
            return self.recommend_on
        return tuple(kind for kind in self.kinds if kind not in self.shown)


class HistorySettings(Section):
    """Bounds of the history slab, per input partition.

    Shared memory per partition: about users x (events + 64) x 25 bytes, touched as it fills, and
    4 bytes more for each feature in `model.context`.
    """

    users: PositiveInt = Field(
        default=50_000, description="Past this the longest idle user is forgotten."
    )
    events: PositiveInt = Field(default=128, description="Remembered of each user.")


class BatchSettings(Section):
    """When events are scored and when a micro-batch closes."""

    score_max_events: PositiveInt = Field(
        default=256, description="Events scored in one forward pass at most."
    )
    train_max_events: PositiveInt = Field(
        default=512, description="A micro-batch closes at this many events."
    )
    train_max_wait_s: PositiveFloat = Field(
        default=1.0, description="A micro-batch closes when its oldest event is this old."
    )
    # 53 bytes an event and the ids of its items, about 60 MB: scoring goes on while a worker
    # restarts, and pauses past this.
    max_untrained_events: PositiveInt = Field(
        default=1_000_000, description="Events waiting for weights before the source is paused."
    )


class SmallBackbone(Section):
    """A GPT-2 of our own size with random weights, made from a config."""

    kind: Literal["small"] = "small"
    dim: PositiveInt = Field(default=64, description="Width of its states.")
    layers: PositiveInt = Field(default=1, description="Transformer blocks.")
    heads: PositiveInt = Field(default=2, description="Attention heads; must divide `dim`.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "SmallBackbone":
        if self.dim % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide dim ({self.dim})")
        return self


class PretrainedBackbone(Section):
    """Any Hugging Face decoder, or encoder run causally: hub id or local folder."""

    kind: Literal["pretrained"] = "pretrained"
    name: str = Field(description="Hub id or local folder.")
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub; the newest when unset."
    )


class GruBackbone(Section):
    """A recurrent network with random weights: cheaper to score with than attention."""

    kind: Literal["gru"] = "gru"
    dim: PositiveInt = Field(default=64, description="Width of its states.")
    layers: PositiveInt = Field(default=1, description="One above the other.")


Backbone = Annotated[SmallBackbone | GruBackbone | PretrainedBackbone, Field(discriminator="kind")]


_Path = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", max_length=64)]


class CategoryFeature(Section):
    """A text of the context: one of a few, such as a country or a device."""

    kind: Literal["category"] = "category"
    name: _Path = Field(
        description="Its name in `context`; a dotted name reads a nested object. A number or a "
        "boolean counts as its text, anything else as absent."
    )
    buckets: Annotated[int, Field(ge=2, le=100_000)] = Field(
        default=1000, description="Values are hashed into so many, each with a vector."
    )

    @property
    def key(self) -> str:
        return f"category:{self.name}"


class NumberFeature(Section):
    """A number of the context, such as a price."""

    kind: Literal["number"] = "number"
    name: _Path = Field(
        description="Its name in `context`; a dotted name reads a nested object. A text that is a "
        "number counts, anything else is absent."
    )
    log: bool = Field(
        default=False, description="Take log(1 + size) first, with its sign: for prices and counts."
    )
    mean: float = Field(default=0.0, description="Taken off.")
    scale: PositiveFloat = Field(default=1.0, description="Then divided by.")
    clip: PositiveFloat = Field(default=5.0, description="What is farther from 0 counts as this.")

    @property
    def key(self) -> str:
        return f"number:{self.name}"


class EventKindFeature(Section):
    """The event's kind, such as view or buy."""

    kind: Literal["event_kind"] = "event_kind"

    @property
    def key(self) -> str:
        return self.kind


class HourFeature(Section):
    """The hour of the event's day, UTC."""

    kind: Literal["hour"] = "hour"

    @property
    def key(self) -> str:
        return self.kind


class GapFeature(Section):
    """The time since the user's event before, in steps that double (as TiSASRec looks at
    intervals: Li et al., 2020)."""

    kind: Literal["gap"] = "gap"

    @property
    def key(self) -> str:
        return self.kind


Feature = Annotated[
    CategoryFeature | NumberFeature | EventKindFeature | HourFeature | GapFeature,
    Field(discriminator="kind"),
]


class ReadoutKind(enum.StrEnum):
    """What is compared with the item vectors."""

    ITEMS = "items"
    STATES = "states"


class ModelSettings(Section):
    """The sequence model."""

    backbone: Backbone = Field(
        default=SmallBackbone(), description="`small`, `gru` or `pretrained`."
    )
    readout: ReadoutKind = Field(
        default=ReadoutKind.ITEMS,
        description="What is compared with item vectors: `items`, a history's own item vectors, "
        "each as much as the backbone says; or `states`, what the backbone gives.",
    )
    dim: PositiveInt = Field(default=64, description="Width of an item vector.")
    max_length: Annotated[int, Field(ge=4)] = Field(
        default=50, description="Events of a history it attends to."
    )
    dropout: float | None = Field(
        default=None,
        ge=0.0,
        lt=1.0,
        description="Share of activations dropped in training. When unset 0.2; pretrained "
        "backbones then keep theirs.",
    )
    temperature: PositiveFloat = Field(
        default=0.1,
        description="Cosine similarities are divided by it before the softmax. It holds from "
        "30,000 items on; with fewer it is multiplied, by up to 3.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="Of the weights of a new model."
    )
    context: Annotated[tuple[Feature, ...], Field(max_length=16)] = Field(
        default=(),
        description="What the model reads of each event beside its item, 16 at most: `category`, "
        "`number`, `event_kind`, `hour` or `gap`. May change between starts: one that is added "
        "begins without effect, and what else was learned stays.",
    )

    @property
    def own_dropout(self) -> float:
        """Of a backbone with random weights."""
        return _OWN_DROPOUT if self.dropout is None else self.dropout

    @field_validator("context")
    @classmethod
    def _each_once(cls, context: tuple[Feature, ...]) -> tuple[Feature, ...]:
        keys = [feature.key for feature in context]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"each feature may be there once; more than once are {twice}")
        return context


class TextSettings(Section):
    """A pretrained encoder of the items' texts."""

    encoder: str | None = Field(
        default=None,
        description="Hub id or local folder of any Hugging Face model with a tokenizer; texts are "
        "not read when unset.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit on the hub; the newest when unset."
    )
    max_tokens: PositiveInt = Field(default=64, description="Longer texts are cut.")
    batch_items: PositiveInt = Field(default=32, description="Texts encoded at once.")


class VectorSettings(Section):
    """Vectors that the catalogue brings, such as those of images."""

    name: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Under which a record's `vectors` have them."
    )
    width: Annotated[int, Field(ge=1, le=16_384)] = Field(description="Numbers in each of them.")

    @field_validator("name")
    @classmethod
    def _is_not_the_texts(cls, name: str) -> str:
        if name == "text":
            raise ValueError("`text` is what items.text.encoder makes: choose another name")
        return name


class ItemsSettings(Section):
    """What is known of items beyond the events, as part of their vectors."""

    text: TextSettings = TextSettings()
    vectors: tuple[VectorSettings, ...] = Field(
        default=(),
        description="Sources of vectors in the records of the items topic, each a section with "
        "`name` and `width`; those of others are ignored.",
    )
    max_bytes: PositiveInt = Field(
        default=65_536, description="Larger records of the items topic are dead-lettered."
    )
    max_rows: PositiveInt = Field(
        default=1_000_000,
        description="Items of a version at most; past this those met longest ago lose their rows.",
    )
    expire_after_s: PositiveFloat | None = Field(
        default=None,
        description="Items that nobody has met for so long, by event time, lose their rows, but "
        "for those that the catalogue names; never when unset.",
    )

    @field_validator("vectors")
    @classmethod
    def _have_names_of_their_own(
        cls, vectors: tuple[VectorSettings, ...]
    ) -> tuple[VectorSettings, ...]:
        names = [source.name for source in vectors]
        if len(set(names)) < len(names):
            raise ValueError(f"a name is there twice: {', '.join(names)}")
        return vectors


class MemorySettings(Section):
    """Item-to-item transitions, learned at every event and mixed into every ranking.

    At the bounds about items x fanout x 8 bytes.
    """

    enabled: bool = Field(default=True, description="Off: the transformer ranks alone.")
    model_share: Share = Field(
        default=0.5,
        description="The transformer's part of the mixture, until the holdout has fitted it.",
    )
    lag: PositiveInt = Field(default=8, description="Events back from which an event is led to.")
    lag_decay: Decay = Field(default=0.75, description="A transition's weight per event between.")
    backward: Share = Field(default=0.75, description="Weight of the opposite direction.")
    depth: PositiveInt = Field(default=10, description="Last events of a history that recall.")
    step_decay: Decay = Field(default=0.7, description="Their weight per event back.")
    shrinkage: Annotated[float, Field(ge=0.0)] = Field(
        default=50.0,
        description="An item from which transitions of weight w lead away weighs w / (w + this).",
    )
    repeat: Annotated[float, Field(ge=0.0)] = Field(
        default=12.0,
        description="Weight of the history's own items, beside transitions of weight 1 from a "
        "well-known last one; multiplies how often users go back so far.",
    )
    popularity_penalty: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.1, description="Exponent of an item's count by which its weight is divided."
    )
    half_life_events: PositiveInt = Field(
        default=1_000_000, description="After so many events a past event counts half."
    )
    fanout: PositiveInt = Field(default=128, description="Transitions kept of an item.")
    items: PositiveInt = Field(
        default=500_000, description="Past this the items that were seen longest ago are forgotten."
    )


class ClickLoss(enum.StrEnum):
    BINARY = "binary"  # cross-entropy: the label is a click or none
    SQUARED = "squared"  # the label is a number, such as a rating


class ClickSettings(Section):
    """The click head: P(click | history, item), learned from events that carry a label.

    The label is the event's `value`, or whether something follows it.
    """

    enabled: bool = Field(default=False, description="Off: nothing is labelled, no head trained.")
    kinds: tuple[str, ...] = Field(
        default=("impression",), description="Kinds of events that are labelled."
    )
    followed_by: tuple[str, ...] = Field(
        default=(),
        description="Kinds that make it a click when they follow, of the same user and item; "
        "none: its value is its label.",
    )
    within_s: PositiveFloat = Field(
        default=1800.0, description="Then its label is told: whether one of these has followed."
    )
    loss: ClickLoss = Field(
        default=ClickLoss.BINARY, description="`binary`, or `squared` for values such as ratings."
    )
    positive_from: float = Field(
        default=0.5, description="A value of at least this counts as a click."
    )
    weight: PositiveFloat = Field(
        default=0.3, description="Of the head's loss, beside that of the next item."
    )
    half_life_events: PositiveInt = Field(
        default=1_000_000,
        description="After so many events, what the head counted of an item counts half.",
    )
    batch_rows: Annotated[int, Field(ge=2)] = Field(
        default=256, description="Labels in one optimizer step; half of them may be new."
    )
    replay_rows: Annotated[int, Field(ge=0)] = Field(
        default=20_000, description="The last labels that are taught again beside new ones."
    )
    window_rows: PositiveInt = Field(
        default=4096, description="Labels held out at most; the oldest are released to training."
    )
    candidates: Annotated[int, Field(ge=2, le=1000)] = Field(
        default=50, description="Best items of a ranking that the head may put in another order."
    )

    @model_validator(mode="after")
    def _one_label(self) -> "ClickSettings":
        if self.followed_by and self.loss is ClickLoss.SQUARED:
            raise ValueError("loss = squared needs values for labels: leave followed_by empty")
        both = set(self.kinds) & set(self.followed_by)
        if both:
            raise ValueError(f"kinds and followed_by both name {sorted(both)}")
        return self


class Device(enum.StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class TrainFull(Section):
    """Every weight of the backbone."""

    kind: Literal["full"] = "full"


class TrainHead(Section):
    """Item vectors and the projections into the body and out of it; the body stays as it is."""

    kind: Literal["head"] = "head"


class TrainTop(Section):
    """The last blocks of the body, beside what `head` trains."""

    kind: Literal["top_n"] = "top_n"
    n: PositiveInt = Field(default=1, description="Blocks.")


class TrainAdapter(Section):
    """A bottleneck added behind each block, beside what `head` trains."""

    kind: Literal["adapter"] = "adapter"
    width: PositiveInt = Field(default=32, description="Of the bottleneck.")


class TrainLora(Section):
    """Narrow matrices added to every linear layer of the body, beside what `head` trains."""

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = Field(default=8, description="Width of the matrices.")
    alpha: PositiveInt = Field(default=16, description="Their product counts alpha / rank.")


Trained = Annotated[
    TrainFull | TrainHead | TrainTop | TrainAdapter | TrainLora, Field(discriminator="kind")
]


class AdamWSettings(Section):
    """AdamW (Loshchilov and Hutter, 2019)."""

    kind: Literal["adamw"] = "adamw"


class SgdSettings(Section):
    """Stochastic gradient descent; it wants a far larger `learning_rate` than AdamW."""

    kind: Literal["sgd"] = "sgd"
    momentum: Fraction = Field(default=0.9, description="Decay of the mean of gradients.")


Optimizer = Annotated[AdamWSettings | SgdSettings, Field(discriminator="kind")]


class UniformReplay(Section):
    """Every user as likely as any other."""

    kind: Literal["uniform"] = "uniform"


class RecencyReplay(Section):
    """Rather users with recent events."""

    kind: Literal["recency"] = "recency"
    of: Annotated[int, Field(ge=2)] = Field(
        default=2, description="Users drawn, of whom the one with the newest event is replayed."
    )


class HerdingReplay(Section):
    """Histories that together stand for all, as the champion sees them (ADER, Mi et al., 2020)."""

    kind: Literal["herding"] = "herding"
    of: Annotated[int, Field(ge=2)] = Field(
        default=4, description="Histories drawn and looked at for each that is replayed."
    )


ReplayChoice = Annotated[UniformReplay | RecencyReplay | HerdingReplay, Field(discriminator="kind")]


class KeepSettings(Section):
    """What else holds a challenger near the champion, against forgetting. Off at 0."""

    distil: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0,
        description="Weight of the divergence from what the champion foretells for replayed "
        "sequences, among the shared negatives.",
    )
    l2: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="Weight of half the squared distance from its weights."
    )


class ReplaySettings(Section):
    """Older histories mixed into every step, against forgetting."""

    ratio: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        default=4.0, description="Replayed sequences per new sequence."
    )
    hurried_ratio: Annotated[float, Field(ge=0.0, le=10.0)] = Field(
        default=1.0,
        description="No more than this while micro-batches wait: late weights cost more than what "
        "the rest of the replay would hold.",
    )
    min_sequences: Annotated[int, Field(ge=0)] = Field(
        default=32, description="Replayed sequences per step at least, while histories last."
    )
    max_events: PositiveInt = Field(
        default=1300,
        description="Replayed events per step at most: long histories would be most of its cost.",
    )
    choice: ReplayChoice = Field(
        default=UniformReplay(), description="Whose: `uniform`, `recency` or `herding`."
    )
    half_life_s: float | None = Field(
        default=None,
        gt=0.0,
        description="A replayed event of this age counts half as much as a new one, by event "
        "time; all the same when unset.",
    )


class AugmentSettings(Section):
    """Altered copies of new sequences, taught beside them. A copy foretells the last event of its
    sequence from an altered history. Off at 0.

    Crop, mask and reorder as in CL4SRec (Xie et al., 2022), substitute as in CoSeRec (Liu et al.,
    2021).
    """

    crop: Share = Field(
        default=0.0, description="Chance of a copy with only a stretch of the history."
    )
    mask: Share = Field(
        default=0.0, description="Chance of a copy in which items are blotted out in their places."
    )
    reorder: Share = Field(
        default=0.0, description="Chance of a copy with a stretch of the history shuffled."
    )
    substitute: Share = Field(
        default=0.0,
        description="Chance of a copy in which items give way to those that the memory leads to "
        "most strongly from them.",
    )
    part: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.3, description="Of a history that is left out, blotted out, shuffled or replaced."
    )


class AdversarialSettings(Section):
    """A second loss in each step, on item vectors that are shifted to where the first grows fastest
    (Miyato et al., 2017; of recommenders He et al., 2018). A step then costs twice as much."""

    epsilon: Annotated[float, Field(ge=0.0)] = Field(
        default=0.0, description="Length of the shift; new item vectors have length 1. Off at 0."
    )
    weight: PositiveFloat = Field(default=1.0, description="Of the second loss, beside the first.")


class HoldoutSettings(Section):
    """Recent interactions kept from training until they age out."""

    fraction: Fraction = Field(default=0.05, description="Share of interactions that are held out.")
    window_rows: PositiveInt = Field(
        default=512, description="Rows held at most; the oldest are released to training."
    )
    max_user_rows: PositiveInt = Field(
        default=16, description="Rows of one user at most; what is more is taught at once."
    )
    max_age_s: PositiveFloat = Field(
        default=604_800.0,
        description="Older rows are released, by event time, but for the newest `gate.min_rows`.",
    )


class GateSettings(Section):
    """What a challenger must show on the rolling holdout to be published."""

    min_rows: PositiveInt = Field(
        default=64, description="Fewer holdout rows than this decide nothing: hold."
    )
    # One-sided 84 %. A stricter gate holds back most of what a few seconds can teach, and the
    # next challenger is judged seconds later anyway.
    z_score: PositiveFloat = Field(
        default=1.0, description="Half-width of the gain's interval, in standard errors."
    )
    tolerance: Annotated[float, Field(ge=0.0)] = Field(
        default=0.01, description="NDCG@10 that a challenger may seem to lose and still pass."
    )
    # Twenty losses within the tolerance could add up to more than a model has.
    older_every: PositiveInt = Field(
        default=20,
        description="A challenger must not fall behind an older version either: the champion of "
        "so many promotions ago at most.",
    )


class RestartSettings(Section):
    """How the worker process is watched."""

    first_delay_s: PositiveFloat = Field(
        default=0.5, description="Before the next worker; doubles with each short life."
    )
    max_delay_s: PositiveFloat = Field(default=30.0, description="The longest such delay.")
    healthy_after_s: PositiveFloat = Field(
        default=60.0, description="A life longer than this sets the delay back."
    )
    heartbeat_s: PositiveFloat = Field(
        default=1.0, description="Between two heartbeats of the worker."
    )
    # Importing torch on a busy two-core machine has taken 20 s.
    start_timeout_s: PositiveFloat = Field(
        default=120.0, description="Not ready by then: killed and restarted."
    )
    silent_after_s: PositiveFloat = Field(
        default=15.0, description="No heartbeat for this long (frozen): killed and restarted."
    )
    stuck_after_s: PositiveFloat = Field(
        default=300.0, description="Heartbeats but no step for this long: killed and restarted."
    )


class TrainerSettings(Section):
    """Fine-tuning of the challenger."""

    device: Device = Field(
        default=Device.AUTO, description="Where it trains; `auto` is CUDA where there is one."
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads of the worker; 0: half the cores."
    )
    trained: Trained = Field(
        default=TrainFull(),
        description="What of the backbone: `full`, `head`, `top_n`, `adapter` or `lora`. Item "
        "vectors and projections always are.",
    )
    optimizer: Optimizer = Field(
        default=AdamWSettings(),
        description="`adamw` or `sgd`. Item vectors have a row-sparse Adam of their own.",
    )
    learning_rate: PositiveFloat = Field(
        default=3e-3,
        description="In a round of `full_round_events` or more, and in one of fewer in proportion.",
    )
    backbone_learning_rate: PositiveFloat | None = Field(
        default=None,
        description="Of the backbone and what is added to it, likewise; unset: `learning_rate`. "
        "One that came pretrained may want 1e-4 or less.",
    )
    # A row moves only in the steps that use it, so each has to count for more.
    item_learning_rate: PositiveFloat = Field(
        default=1.5e-2, description="Of the item vectors, likewise."
    )
    full_round_events: PositiveInt = Field(
        default=512,
        description="New events for which the learning rates are meant: a slow stream is learned "
        "in rounds of fewer, which are as many more.",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="First steps of a model, over which the rates rise from 0."
    )
    id_dropout: Fraction = Field(
        default=0.25,
        description="Share of described items whose id vectors are left out of a step, so that "
        "descriptions learn to stand alone.",
    )
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(
        default=0.01, description="Of matrices, but for item vectors and the click head."
    )
    clip_norm: PositiveFloat = Field(
        default=1.0, description="Gradients are scaled down to this norm."
    )
    batch_sequences: PositiveInt = Field(default=64, description="Sequences in one optimizer step.")
    negatives: PositiveInt = Field(
        default=2048, description="Shared sampled negatives; at most this many items: all of them."
    )
    max_epochs: PositiveInt = Field(
        default=2,
        description="Passes over a round's events at most; the holdout may stop sooner. While "
        "micro-batches wait it is one, and the gate alone decides what is published.",
    )
    patience: PositiveInt = Field(
        default=1,
        description="Passes without a better holdout after which a round of several stops. The "
        "last one is undone where the holdout is plainly worse after it.",
    )
    max_round_events: PositiveInt = Field(
        default=4096, description="Waiting micro-batches are joined up to this many events."
    )
    max_loss_ratio: Annotated[float, Field(gt=1.0)] = Field(
        default=2.0,
        description="A round with a loss of so many times the usual, that is worse than guessing, "
        "is undone.",
    )
    # So that one busy user does not decide what a micro-batch teaches.
    max_user_events: PositiveInt = Field(
        default=256, description="Events of a user that a micro-batch teaches at most: the newest."
    )
    max_rejections: PositiveInt = Field(
        default=3, description="After so many in a row the round's events are given up, counted."
    )
    publish_every_s: Annotated[float, Field(ge=0.0)] = Field(
        default=2.0, description="The gate is asked at most this often."
    )
    replay: ReplaySettings = ReplaySettings()
    keep: KeepSettings = KeepSettings()
    augment: AugmentSettings = AugmentSettings()
    adversarial: AdversarialSettings = AdversarialSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    gate: GateSettings = GateSettings()
    restart: RestartSettings = RestartSettings()


class ScorerSettings(Section):
    """What a recommendation holds."""

    top_k: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=10, description="Items in a recommendation at most."
    )
    exclude_seen: bool = Field(
        default=True, description="Leave out the items of the user's remembered history."
    )
    threads: Annotated[int, Field(ge=0)] = Field(
        default=0, description="CPU threads of scoring; 0: half the cores."
    )
    popularity_half_life_events: PositiveInt = Field(
        default=20_000, description="After so many events a past event counts half."
    )


class RegistrySettings(Section):
    """Published versions."""

    keep_versions: Annotated[int, Field(ge=2)] = Field(
        default=10, description="Older ones are removed; the pinned one stays."
    )
    poll_s: PositiveFloat = Field(
        default=1.0, description="How soon a pin or rollback from the command line is seen."
    )


# A password before a host, also one with a slash in it, which leaves something that is no port; any
# user of a web address; and what follows a question mark, by which addresses are signed.
_SECRET_IN_URL = re.compile(
    r"://[^/]*:[^/]*@ | ://[^/\[\]]*(?<!:):(?!:|\d*(?:/[^@]*)?$) | https?://[^/]*@ | ://.*\?.*=",
    re.VERBOSE,
)


def _without_password(url: str) -> str:
    """It is printed, so it may hold no secret."""
    if _SECRET_IN_URL.search(url):
        raise ValueError(
            "a password does not belong into the URL: give it to the storage's client, by its own "
            "environment or as FSSPEC_<PROTOCOL>_<OPTION>"
        )
    return url


class StorageSettings(Section):
    """Where versions and state snapshots are kept."""

    root: Path = Field(
        default=Path("headwater-data"), description="Folder of all that outlives the process."
    )
    snapshots: Annotated[str, AfterValidator(_without_password)] | None = Field(
        default=None,
        description="Folder or URL of state snapshots, as fsspec reads them (`s3://...`, with its "
        "client installed); `snapshots` in `root` when unset.",
    )
    # Events read again at a start, at ten to twenty times the pace at which they came.
    snapshot_every_s: PositiveFloat | None = Field(
        default=60.0,
        description="State is snapshotted this often, and when partitions are given up. Null: "
        "never; histories are then read from the log at every start.",
    )
    keep_snapshots: PositiveInt = Field(
        default=3,
        description="Of a partition, besides those that others stand on; of several not all "
        "stand on one, so there may be one more.",
    )

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def snapshots_url(self) -> str:
        return self.snapshots or str(self.root / "snapshots")


class AdminSettings(Section):
    """The HTTP port of metrics and health."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; 0.0.0.0 for every one."
    )
    port: Annotated[int, Field(ge=0, le=65_535)] = Field(default=8321, description="0: any free.")
    # A stalled loop loses the group membership at the session timeout; say so before that.
    live_within_s: PositiveFloat = Field(
        default=20.0, description="/livez fails when the event loop has stalled this long."
    )


class TrackingSettings(Section):
    """Training curves of `serve` and `backtest`, beside the metrics.

    What fails there is logged once and stops nothing.
    """

    tensorboard: Path | None = Field(
        default=None,
        description="Folder in which each start writes a run for TensorBoard; none when unset. "
        "Needs `pip install '.[tracking]'`.",
    )
    wandb: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="Project in Weights & Biases in which each start makes a run; none when unset. "
        "Needs `pip install wandb`; `WANDB_MODE=offline` sends nothing.",
    )


class PrivacySettings(Section):
    """How users are named where they need not be known."""

    hash_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Keys the hashes that stand for users in logs and in headers of dead letters, "
        "so that those of several replicas and runs agree; at least 16 characters. Random at each "
        "start when unset.",
    )


class LogLevel(enum.StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


class LogFormat(enum.StrEnum):
    TEXT = "text"
    JSON = "json"


class LogSettings(Section):
    """What is logged, to standard error."""

    level: LogLevel = Field(
        default=LogLevel.INFO,
        description="Of Headwater itself. Libraries are never heard at `DEBUG`, where some log "
        "requests with passwords and tokens.",
    )
    format: LogFormat = Field(
        default=LogFormat.TEXT, description="`json`: one object a line, for log collectors."
    )

    @property
    def others(self) -> str:
        """The level of all that is not Headwater's."""
        return (LogLevel.INFO if self.level is LogLevel.DEBUG else self.level).value


class Role(enum.StrEnum):
    """What a process does of the whole."""

    SCORE = "score"  # answers events; replicas share the partitions
    TRAIN = "train"  # reads all partitions, trains and publishes; one at a time


class Settings(Section):
    """The whole tree; `headwater config` prints the effective one."""

    roles: Annotated[tuple[Role, ...], Field(min_length=1)] = Field(
        default=(Role.SCORE, Role.TRAIN),
        description="`score`, `train`, or both. One process with `train` on a storage root; with "
        "more than one that scores, let it do nothing else.",
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicsSettings = TopicsSettings()
    events: EventsSettings = EventsSettings()
    history: HistorySettings = HistorySettings()
    batch: BatchSettings = BatchSettings()
    model: ModelSettings = ModelSettings()
    items: ItemsSettings = ItemsSettings()
    memory: MemorySettings = MemorySettings()
    click: ClickSettings = ClickSettings()
    trainer: TrainerSettings = TrainerSettings()
    scorer: ScorerSettings = ScorerSettings()
    registry: RegistrySettings = RegistrySettings()
    storage: StorageSettings = StorageSettings()
    admin: AdminSettings = AdminSettings()
    tracking: TrackingSettings = TrackingSettings()
    privacy: PrivacySettings = PrivacySettings()
    log: LogSettings = LogSettings()

    @property
    def scores(self) -> bool:
        return Role.SCORE in self.roles

    @property
    def trains(self) -> bool:
        return Role.TRAIN in self.roles

    @property
    def reading(self) -> KafkaSettings:
        """`kafka` with the group in which this process reads: one that only trains reads all
        partitions, beside those that score."""
        if self.scores:
            return self.kafka
        return self.kafka.model_copy(update={"group_id": self.training_group})

    @property
    def training_group(self) -> str:
        """The group of a process that only trains."""
        return f"{self.kafka.group_id}.train"

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.history.events < self.model.max_length:
            raise ValueError(
                f"history.events ({self.history.events}) must be at least "
                f"model.max_length ({self.model.max_length})"
            )
        unknown = {*self.click.kinds, *self.click.followed_by} - set(self.events.kinds)
        if unknown and self.click.enabled:
            raise ValueError(f"click names kinds that are not in events.kinds: {sorted(unknown)}")
        both = set(self.click.followed_by) & set(self.events.negative)
        if both and self.click.enabled:
            raise ValueError(f"click.followed_by and events.negative both name {sorted(both)}")
        if self.trainer.augment.substitute and not self.memory.enabled:
            raise ValueError(
                "trainer.augment.substitute takes items from the memory: set memory.enabled, or "
                "leave substitute at 0"
            )
        return self


def load_settings(
    file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The effective settings.

    `overrides` is a nested mapping and wins. Raises `ConfigurationError` with one line that
    names every fault: a missing or broken file, an unknown key, a value of the wrong type.
    """
    tree = read_file(file) if file else {}
    merge(tree, from_environment(environ))
    merge(tree, overrides or {})
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigurationError(_explain(error, tree)) from None


def masked(settings: Settings) -> dict[str, Any]:
    """The tree as plain data with secrets masked."""
    plain: dict[str, Any] = settings.model_dump(mode="json")
    return plain


def read_file(file: Path) -> dict[str, Any]:
    """What a settings file says, unchecked. Raises `ConfigurationError`."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read settings file {file}: {error.strerror}; name one that is there with "
            f"--config or {ENV_FILE}, or neither for the defaults"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"settings file {file} is not valid TOML: {error}") from None


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the environment says, unchecked. Raises `ConfigurationError`."""
    tree: dict[str, Any] = {}
    for name, text in sorted(environ.items()):
        if not name.startswith(ENV_PREFIX) or name in (ENV_FILE, ENV_TEST_KAFKA):
            continue
        path = _path(name)
        plain = name.removesuffix(ENV_IN_FILE)
        if plain != name and _annotation(path) is None and _annotation(_path(plain)) is not None:
            if plain in environ:
                raise ConfigurationError(f"{plain} and {name} are both set: unset one")
            path, text = _path(plain), _content(name, Path(text))
        _put(tree, path, _parse(path, text))
    return tree


def _path(name: str) -> list[str]:
    return name.removeprefix(ENV_PREFIX).lower().split(ENV_LEVEL)


def _content(name: str, file: Path) -> str:
    """Without the line end that editors and `echo` add."""
    try:
        text = file.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"cannot read the file that {name} names: {reason}") from None
    if not text:
        raise ConfigurationError(f"the file that {name} names is empty")
    return text


def _parse(path: list[str], text: str) -> object:
    """Lists and sections are JSON; everything else stays text, which pydantic converts."""
    if not _is_structured(_annotation(path)):
        return text
    try:
        return TypeAdapter(Any).validate_json(text)
    except ValidationError:
        name = ENV_PREFIX + ENV_LEVEL.join(path).upper()
        raise ConfigurationError(
            f'{name} is not valid JSON; a list is written as ["view", "buy"], '
            'a section as {"dim": 32}'
        ) from None


def _annotation(path: list[str]) -> object:
    """The declared type of the setting at `path`; None where there is no such setting."""
    annotation: Any = Settings
    for key in path:
        if get_origin(annotation) is tuple and key.isdecimal():
            annotation = get_args(annotation)[0]
            if get_origin(annotation) is Annotated:
                annotation = get_args(annotation)[0]
            continue
        fields = [section.model_fields.get(key) for section in _sections(annotation)]
        annotation = next((field.annotation for field in fields if field is not None), None)
        if annotation is None:
            return None
    return annotation


def _sections(annotation: Any) -> list[type[Section]]:
    """The sections that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [found for each in get_args(annotation) for found in _sections(each)]
    return []


def _kinds(union: object) -> list[str]:
    """The kinds of the sections that a discriminated union chooses from."""
    return [each.model_fields["kind"].default for each in _sections(union)]


def _is_structured(annotation: object) -> bool:
    """Whether values of this type are lists, mappings or sections. A union is, if any member is."""
    if get_origin(annotation) in (Union, UnionType):
        return any(map(_is_structured, get_args(annotation)))
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return is_section or get_origin(annotation) in (tuple, dict)


def _put(tree: dict[str, Any], path: list[str], value: object) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise ConfigurationError(f"{ENV_PREFIX}* sets both {key} and a key below it")
    tree[path[-1]] = value


def merge(tree: dict[str, Any], stronger: Mapping[str, Any]) -> None:
    """Put the stronger values into the tree, section by section."""
    for key, value in stronger.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            merge(tree[key], value)
        else:
            tree[key] = value


def _explain(error: ValidationError, tree: Mapping[str, Any]) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False):
        where = _where(fault["loc"], tree)
        if fault["type"] == "extra_forbidden":
            faults.append(f"unknown setting {where}; `headwater config` lists those that exist")
        elif fault["type"] == "union_tag_not_found":
            kinds = " or ".join(_kinds(_annotation(where.split("."))))
            faults.append(f"setting {where}.kind is missing: {kinds}")
        elif fault["type"] in _NOT_A_SECTION:
            name = ENV_PREFIX + where.replace(".", ENV_LEVEL).upper()
            faults.append(
                f"setting {where}: it is a section; set its keys one by one ({name}{ENV_LEVEL}...) "
                f'or all as JSON ({name}={{"KEY": ...}})'
            )
        else:
            meaning = fault["msg"].removeprefix("Value error, ")
            faults.append(f"setting {where}: {meaning}" if where else f"settings: {meaning}")
    return "; ".join(faults)


def _where(loc: tuple[int | str, ...], tree: Mapping[str, Any]) -> str:
    """The dotted name of a faulty setting, without the union tags that pydantic puts between."""
    names = []
    level: Any = tree
    for key in loc:
        known = isinstance(level, Mapping) and key in level
        known |= isinstance(level, list) and isinstance(key, int)
        if known or key == loc[-1]:
            names.append(str(key))
        if known:
            level = level[key]
    return ".".join(names)


def environment_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The settings file that the environment names, if any."""
    return Path(environ[ENV_FILE]) if ENV_FILE in environ else None
