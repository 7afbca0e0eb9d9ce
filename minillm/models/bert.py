"""BERT (Devlin et al. 2018, arXiv:1810.04805): a stack of Transformer blocks in which every token sees every other.

It learns by filling gaps. Some tokens of a text are hidden (data/masking.py), and the model predicts them from the
tokens before and after. It also predicts, for two sentences, whether the second follows the first. What differs from
GPT-2 (gpt2.py), with ids (B, T):

- attention looks both ways, so nothing is generated from left to right; in a padded text it sees the real tokens only;
- the norm comes after each sum, x = norm(x + attention(x)), and again x = norm(x + mlp(x)) (post-norm);
- a token is the sum of three vectors: for its id, for its position, and for the sentence that it is in;
- GELU is the exact one, x Phi(x);
- two heads read the features (B, T, C): the head for hidden tokens gives logits (B, T, V) through one more layer, its
  norm, and the token table; the head for sentences reads the first position, [CLS], alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array, as_array
from minillm.errors import DtypeError, InputError, ShapeError, check_index, check_shapes
from minillm.models.config import Config, check_fixed, config_from
from minillm.models.heads import QuestionAnswering, SequenceClassification, TokenClassification
from minillm.models.labels import check_labels, labels_from, labels_to
from minillm.nn import MLP, Dropout, Embedding, LayerNorm, Linear, Module, SelfAttention
from minillm.nn.initial import normal_, uninitialized


@dataclass(frozen=True)
class BertConfig(Config):
    """The shape of a BERT."""

    vocab_size: int = 30522  # V, number of token ids
    context: int = 512  # longest sequence, in tokens
    layers: int = 12  # L, number of blocks
    heads: int = 12  # H, attention heads per block; must divide channels
    channels: int = 768  # C, width of the residual stream
    hidden: int = 3072  # width of the MLP
    token_types: int = 2  # kinds of sentences: the first and the second; 0: no vector is added for them
    dropout: float = 0.1  # probability: after the embedding and on each residual branch
    attention_dropout: float = 0.1  # probability for each attention weight
    norm_eps: float = 1e-12  # added to the variance
    padding_id: int = 0  # token id that fills short sequences
    labels: int = 2  # number of classes of a text, or of each token, for the heads that classify them
    classifier_dropout: float | None = None  # probability before such a head; None: that of dropout
    problem_type: str | None = None  # what a head for texts learns (see heads.py); None: the labels decide
    label_names: tuple[str, ...] = ()  # the names of the classes, for such heads; none: LABEL_0, LABEL_1, ...

    no_options: ClassVar = ("padding_id", "labels", "classifier_dropout", "problem_type")
    LEAST_TOKEN_TYPES: ClassVar[int] = 1

    def __post_init__(self):
        super().__post_init__()
        self.check_least(1, "vocab_size", "context", "layers", "heads", "channels", "hidden")
        self.check_least(self.LEAST_TOKEN_TYPES, "token_types")
        self.check_divides("heads", "channels")
        self.check_probabilities("dropout", "attention_dropout", "classifier_dropout")
        self.check_above_zero("norm_eps")
        if not 0 <= self.padding_id < self.vocab_size:
            raise InputError(
                f"{type(self).__name__}: padding_id is {self.padding_id}; give a token id, 0 to {self.vocab_size - 1}"
            )
        check_labels(self)

    @property
    def head_dropout(self) -> float:
        """Dropout probability before a head that classifies texts or tokens."""
        return self.dropout if self.classifier_dropout is None else self.classifier_dropout

    @property
    def positions(self) -> int:
        """Number of rows of the position table."""
        return self.context


PRESETS = {
    # for tests: 37 thousand weights
    "nano": BertConfig(256, 32, layers=2, heads=2, channels=32, hidden=128, dropout=0.0, attention_dropout=0.0),
    # Turc et al. 2019 (arXiv:1908.08962): 4.4, 11, 29 and 41 million weights
    "bert-tiny": BertConfig(layers=2, heads=2, channels=128, hidden=512),
    "bert-mini": BertConfig(layers=4, heads=4, channels=256, hidden=1024),
    "bert-small": BertConfig(layers=4, heads=8, channels=512, hidden=2048),
    "bert-medium": BertConfig(layers=8, heads=8, channels=512, hidden=2048),
    # the sizes of the paper: 110 and 336 million weights
    "bert-base-uncased": BertConfig(),
    "bert-base-cased": BertConfig(vocab_size=28996),
    "bert-large-uncased": BertConfig(layers=24, heads=16, channels=1024, hidden=4096),
    "bert-large-cased": BertConfig(vocab_size=28996, layers=24, heads=16, channels=1024, hidden=4096),
}


class Block(Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: BertConfig):
        self.attn = SelfAttention(config.channels, config.heads, config.dropout, config.attention_dropout)
        self.ln_1 = LayerNorm(config.channels, config.norm_eps)
        self.mlp = MLP(config.channels, config.hidden, config.dropout, activation="gelu")
        self.ln_2 = LayerNorm(config.channels, config.norm_eps)

    def forward(self, x: Tensor, lengths: Any = None, mask: Array | None = None) -> Tensor:
        x = self.ln_1(x + self.attn(x, mask=mask, lengths=lengths))  # (B, T, C)
        return self.ln_2(x + self.mlp(x))


class Encoder(Module):
    """The part that BERT, RoBERTa and DistilBERT share: from ids (B, T) to features (B, T, C)."""

    def __init__(self, config: BertConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)  # tokens; also the output layer
        self.wpe = Embedding(config.positions, config.channels)  # positions
        # table of the first and the second sentence, which DistilBERT lacks
        self.wse = Embedding(config.token_types, config.channels) if config.token_types else None
        self.ln = LayerNorm(config.channels, config.norm_eps)
        self.drop = Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.layers)]

    def _init_weights(self) -> None:
        """Matrices from N(0, 0.02), biases 0, norms 1; padding starts as the zero vector.

        Source: Devlin et al.'s code (initializer_range), which truncates the normal distribution at two deviations.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                normal_(parameter.data, 0.02)
            elif name.endswith("bias"):
                parameter.data[...] = 0
        self.wte.weight.data[self.config.padding_id] = 0

    def position_ids(self, ids: Array) -> Array:
        """The row of the position table for each token: (B, T), or (T,) if it is the same in all sequences."""
        return np.arange(ids.shape[1], like=ids)

    def features(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Tensor:
        """A vector for each token that depends on the whole text.

        Shapes: ids and token_types (B, T), integers, where None means that all token types are 0; result (B, T, C).
        lengths: (B,), the number of real tokens of each sequence, which come first; or instead
        attention_mask: (B, T), boolean or 0 and 1: true for real tokens. No token sees padding, and the result has no
            meaning at padding.
        Raises: ShapeError for shapes that do not fit, or more tokens than the context; DtypeError and InputError for
            ids that are not in the tables; InputError for lengths together with a mask.
        """
        name = type(self).__name__
        given = {"ids": ids, "token_types": token_types, "attention_mask": attention_mask}
        arrays = {key: x.data if isinstance(x, Tensor) else as_array(x) for key, x in given.items() if x is not None}
        ids, token_types, mask = arrays["ids"], arrays.get("token_types"), arrays.get("attention_mask")
        if ids.ndim != 2:
            raise ShapeError(f"{name}: ids have shape {ids.shape}; give (B, T), such as ids[None] for one sequence")
        if not 1 <= ids.shape[1] <= self.config.context:
            raise ShapeError(f"{name}: ids have T={ids.shape[1]}; give 1 to {self.config.context}, the context")
        check_shapes(name, **{key: ("B T", x) for key, x in arrays.items()})
        if mask is not None and lengths is not None:
            raise InputError(f"{name}: lengths and attention_mask both mark the real tokens; give one of them")
        if mask is not None and mask.dtype.kind not in "biu":
            raise DtypeError(f"{name}: attention_mask has dtype {mask.dtype}; give bool, True where a token is real")

        x, places = self.wte(ids), self.wpe(self.position_ids(ids))  # (B, T, C)
        if self.wse is None:
            if token_types is not None:
                raise InputError(f"{name}: token_types were given, but this model has none; leave them out")
        elif token_types is None:
            places = places + self.wse(np.zeros((), np.int64, like=ids))
        else:
            check_index(name, token_types, self.config.token_types, "token type")
            places = places + self.wse(token_types)
        x = self.drop(self.ln(x + places))
        mask = None if mask is None else (mask != 0)[:, None, None]  # (B, 1, 1, T), for every head and query
        for block in self.h:
            x = block(x, lengths, mask)
        return x

    forward = features


class MaskedLMHead(Module):
    """Logits of hidden tokens from features x: norm(gelu(linear(x))) table^T + bias."""

    def __init__(self, config: BertConfig):
        self.fc = Linear(config.channels, config.channels)
        self.ln = LayerNorm(config.channels, config.norm_eps)
        self.bias = Parameter(np.zeros(config.vocab_size, np.float32))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = self.ln(ops.gelu(self.fc(x)))  # (..., C)
        return ops.linear(x, table, self.bias)  # (..., V)

    def loss(self, x: Tensor, table: Tensor, labels: Any, reduction: str = "mean") -> Tensor:
        """Cross-entropy at the positions with a label; logits of the others, about six in seven, are not computed."""
        labels = labels.data if isinstance(labels, Tensor) else as_array(labels)
        sizes = check_shapes("loss", features=("B T C", x), labels=("B T", labels))
        labels = labels.reshape(-1)
        hidden = np.flatnonzero(labels != -100)
        logits = self(x.reshape(labels.size, sizes["C"]).index_select(0, hidden), table)
        return ops.cross_entropy(logits, labels[hidden], reduction=reduction, overwrite=True)


class MaskedLM(Encoder):
    """An encoder with a head for hidden tokens, `head`: called with ids (B, T), it returns logits (B, T, V)."""

    head: MaskedLMHead

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Tensor:
        return self.head(self.features(ids, token_types, lengths, attention_mask), self.wte.weight)

    def loss(
        self,
        ids: Any,
        labels: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Cross-entropy of the hidden tokens, in nats: their mean, or their sum.

        Shapes: labels (B, T), the ids of hidden tokens, and -100 elsewhere; the rest as in `features`.
        """
        x = self.features(ids, token_types, lengths, attention_mask)
        return self.head.loss(x, self.wte.weight, labels, reduction)


class BertForMaskedLM(MaskedLM):
    """A BERT with the head for hidden tokens alone, without the pooler and the head for sentences."""

    def __init__(self, config: BertConfig):
        with uninitialized():  # all weights are drawn below
            super().__init__(config)
        self.head = MaskedLMHead(config)
        self.assign_names()
        self._init_weights()


class BertModel(Encoder):
    """BERT without its heads: called with ids (B, T), it returns features (B, T, C); see `features` for the rest."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.pooler = Linear(config.channels, config.channels)
        self.assign_names()
        self._init_weights()

    def pool(self, features: Tensor) -> Tensor:
        """A vector for each text, (B, C): tanh of a linear layer on the features of the first token, [CLS]."""
        return ops.tanh(self.pooler(features[:, 0]))


class BertForPreTraining(BertModel):
    """A BERT with both heads: called with ids (B, T), it returns logits (B, T, V) of tokens and (B, 2) of sentences.

    Class 0 of the latter means that the second sentence follows the first, class 1 that it comes from elsewhere.
    """

    def __init__(self, config: BertConfig):
        with uninitialized():  # all weights are drawn below
            super().__init__(config)
        self.head = MaskedLMHead(config)
        self.next_sentence = Linear(config.channels, 2)
        self.assign_names()
        self._init_weights()

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Any:
        x = self.features(ids, token_types, lengths, attention_mask)
        return self.head(x, self.wte.weight), self.next_sentence(self.pool(x))

    def loss(
        self,
        ids: Any,
        labels: Any,
        token_types: Any = None,
        lengths: Any = None,
        next_sentence: Any = None,
        attention_mask: Any = None,
    ) -> Tensor:
        """Mean cross-entropy of the hidden tokens, in nats, plus that of the sentences if `next_sentence` is given.

        Shapes: labels (B, T), the ids of hidden tokens, and -100 elsewhere; next_sentence (B,), 0 if the second
            sentence follows the first, 1 if it does not, -100 if that is unknown; the rest as in `features`.
        Source: Devlin et al. 2018, appendix A.2: the sum of the two means.
        """
        x = self.features(ids, token_types, lengths, attention_mask)
        loss = self.head.loss(x, self.wte.weight, labels)
        if next_sentence is not None:
            loss = loss + ops.cross_entropy(self.next_sentence(self.pool(x)), next_sentence)
        return loss


class BertForSequenceClassification(SequenceClassification, BertModel):
    """A BERT that classifies texts by the pooled vector of [CLS]."""

    def __init__(self, config: BertConfig):
        with uninitialized():  # all weights are drawn below
            super().__init__(config)
        self.drop_features = Dropout(config.head_dropout)
        self.classifier = Linear(config.channels, config.labels)
        self.assign_names()
        self._init_weights()

    def class_logits(self, features: Tensor) -> Tensor:
        return self.classifier(self.drop_features(self.pool(features)))


class BertForTokenClassification(TokenClassification, Encoder):
    """A BERT that classifies tokens, for example as names of people or as none."""

    def __init__(self, config: BertConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head(config.head_dropout)
        self.assign_names()
        self._init_weights()


class BertForQuestionAnswering(QuestionAnswering, Encoder):
    """A BERT that finds the answer to a question in a text."""

    def __init__(self, config: BertConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head()
        self.assign_names()
        self._init_weights()


# --- Hugging Face's names ------------------------------------------------------------------------------------------


def weight_and_bias(names: dict[str, str]) -> dict[str, str | tuple[str, ...]]:
    """The names of weights and biases, ours and theirs, from the names of their layers."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in names.items() for kind in ("weight", "bias")}


def names_of_encoder(body: str) -> dict[str, str | tuple[str, ...]]:
    """Hugging Face's name for each parameter of an Encoder, with {i} for the number of the block.

    Several names: their rows, stacked, are one of our parameters.
    """
    layer, parts = f"{body}.encoder.layer.{{i}}", ("query", "key", "value")
    return {
        "wte.weight": f"{body}.embeddings.word_embeddings.weight",
        "wpe.weight": f"{body}.embeddings.position_embeddings.weight",
        "wse.weight": f"{body}.embeddings.token_type_embeddings.weight",
        **{
            f"h.{{i}}.attn.qkv.{kind}": tuple(f"{layer}.attention.self.{part}.{kind}" for part in parts)
            for kind in ("weight", "bias")
        },
        **weight_and_bias(
            {
                "ln": f"{body}.embeddings.LayerNorm",
                "h.{i}.attn.proj": f"{layer}.attention.output.dense",
                "h.{i}.ln_1": f"{layer}.attention.output.LayerNorm",
                "h.{i}.mlp.fc": f"{layer}.intermediate.dense",
                "h.{i}.mlp.proj": f"{layer}.output.dense",
                "h.{i}.ln_2": f"{layer}.output.LayerNorm",
            }
        ),
    }


PREFIX = "bert."
# Positions 0, 1, ...; tied copies; layers that Google's files of BertForMaskedLM hold beside its head.
IGNORED = (
    *("position_ids", "predictions.decoder.weight", "predictions.decoder.bias"),
    *(f"{layer}.{kind}" for layer in ("pooler.dense", "seq_relationship") for kind in ("weight", "bias")),
)
TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    **names_of_encoder("bert"),
    **weight_and_bias(
        {
            "pooler": "bert.pooler.dense",
            "head.fc": "cls.predictions.transform.dense",
            "head.ln": "cls.predictions.transform.LayerNorm",
            "next_sentence": "cls.seq_relationship",
            "classifier": "classifier",
            "qa_outputs": "qa_outputs",
        }
    ),
    "head.bias": "cls.predictions.bias",
}
# For each field of the configuration: its key in a config.json, and its value if the key is missing.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 30522),
    "context": ("max_position_embeddings", 512),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "channels": ("hidden_size", 768),
    "hidden": ("intermediate_size", 3072),
    "token_types": ("type_vocab_size", 2),
    "dropout": ("hidden_dropout_prob", 0.1),
    "attention_dropout": ("attention_probs_dropout_prob", 0.1),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "padding_id": ("pad_token_id", 0),
    "classifier_dropout": ("classifier_dropout", None),
    "problem_type": ("problem_type", None),
}
FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def config_from_hugging_face(values: Mapping[str, Any]) -> BertConfig:
    """The configuration in the values of a config.json of model type bert.

    Raises: InputError that names a key which this model cannot honour, or whose value has the wrong type.
    """
    check_fixed(values, {key: (only,) for key, only in {"model_type": "bert", **FIXED}.items()})
    return config_from(BertConfig, KEYS, values, **labels_from(values))


def config_to_hugging_face(config: BertConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return {
        "architectures": ["BertForPreTraining"],
        "model_type": "bert",
        **{key: getattr(config, field) for field, (key, _) in KEYS.items()},
        **FIXED,
        **labels_to(config),
    }
