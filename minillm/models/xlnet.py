"""XLNet (Yang et al. 2019, arXiv:1906.08237): it learns from both sides of a token by reading in any order.

A model of the next token sees only the tokens before it. BERT sees both sides, but none of the tokens that it hides
knows of another. XLNet draws an order in which the tokens are read (data/permutation.py), and predicts each from the
tokens before it in that order, wherever they stand in the text:

    log p(x) = sum_n log p(x_z(n) | x_z(1), ..., x_z(n-1))        z an order of the positions, drawn anew each time

The text itself and its positions stay in place; the order is only a mask of the tokens that each token sees. Two things
follow from it. With ids (B, T), M tokens of memory, P tokens to predict, and Tk = M + T keys:

- Two streams (section 2.3). To predict a token, the model must know its position but not the token; to predict later
  tokens, it must know both. So each position has two vectors in every block: the content h, which has seen its own
  token, and the query g, which starts as one learned vector at all positions and has not. Both attend to the contents:

      h_t = attention(query h_t, keys and values h_s, of s up to t in the order)
      g_t = attention(query g_t, keys and values h_s, of s before t in the order)

  with the same weights. g exists for the P tokens to predict only, and the output layer reads it. Without
  `target_mapping` there is no g, each token sees every other, and h is the result: this is how the model is fine-tuned.

- Relative positions (Transformer-XL, Dai et al. 2019, arXiv:1901.02860, section 3.3). The score of query t and key s
  depends on positions only through their distance, so a text may continue an earlier one, whose vectors in every block
  are kept, without gradient, as memory. For one head, with R the sinusoids of a distance times a matrix:

      score_ts = ((q_t + r_w) . k_s  +  (q_t + r_r) . R_(t-s)  +  (q_t + r_s) . e_ts) / sqrt(D)

  r_w, r_r and r_s are learned, in each block; e_ts is one of two learned vectors, for tokens of the same segment (a
  sentence of two, say) and of different ones. There is no limit to the length of a text.

Blocks are those of BERT (bert.py): the norm comes after each sum, GELU is the exact one, and the output layer is the
token table and a bias. A masked score is -inf, so that a hidden token has no weight at all; a query that sees nothing,
the first of an order in a text without context and memory, gives 0. (transformers subtracts 1e30, which in this case
leaves equal weights on all tokens, including the hidden ones and the token itself.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minillm import ops, random
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import DtypeError, InputError, ShapeError, check_index, check_shapes
from minillm.models.heads import QuestionAnswering, SequenceClassification, TokenClassification, vectors_at
from minillm.models.xlnet_attention import AttentionInputs, RelativeAttention, sinusoids
from minillm.models.xlnet_config import PRESETS as PRESETS
from minillm.models.xlnet_config import XLNetConfig
from minillm.models.xlnet_config import config_from_hugging_face as config_from_hugging_face
from minillm.models.xlnet_config import config_to_hugging_face as config_to_hugging_face
from minillm.nn import Dropout, Embedding, LayerNorm, Linear, Module
from minillm.nn.initial import normal_, uninitialized


class MLP(Module):
    """Two linear layers with the exact GELU between them; unlike nn.MLP, with dropout after the GELU, too."""

    def __init__(self, config: XLNetConfig):
        self.fc = Linear(config.channels, config.hidden)
        self.proj = Linear(config.hidden, config.channels)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(ops.gelu(self.fc(x)))  # (..., hidden)
        return self.dropout(self.proj(hidden))


class Block(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), for each stream x."""

    def __init__(self, config: XLNetConfig):
        self.attn = RelativeAttention(config)
        self.ln_1 = LayerNorm(config.channels, config.norm_eps)
        self.mlp = MLP(config)
        self.ln_2 = LayerNorm(config.channels, config.norm_eps)

    def forward(
        self, h: Tensor, g: Tensor | None, memory: Tensor | None, inputs: AttentionInputs
    ) -> tuple[Tensor, Tensor | None]:
        attn_h, attn_g = self.attn(h, g, memory, inputs)
        h = self.ln_1(h + attn_h)  # (B, T, C)
        h = self.ln_2(h + self.mlp(h))
        if g is None or attn_g is None:
            return h, None
        g = self.ln_1(g + attn_g)  # (B, P, C)
        return h, self.ln_2(g + self.mlp(g))


class XLNetModel(Module):
    """XLNet without its head: called with ids (B, T), it returns features; see `features`."""

    def __init__(self, config: XLNetConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)  # token table; also the output layer
        self.mask_emb = Parameter(np.zeros(config.channels, np.float32))  # the first g of every position
        self.drop = Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.layers)]
        self.assign_names()
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices, biases of queries and the first g from N(0, 0.02); other biases 0, norms 1.

        Source: Yang et al.'s code (init_std).
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 or name.endswith(("mask_emb", "r_w_bias", "r_r_bias", "r_s_bias")):
                normal_(parameter.data, 0.02)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def features(self, ids: Any, **inputs: Any) -> Tensor:
        """Features (B, P, C), or (B, T, C) without `target_mapping`; the arguments are those of `features_and_mems`."""
        return self.features_and_mems(ids, **inputs)[0]

    def forward(self, ids: Any, *args: Any, **inputs: Any) -> Any:
        return self.features_and_mems(ids, *args, **inputs)[0]

    def features_and_mems(
        self,
        ids: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
        perm_mask: Any = None,
        target_mapping: Any = None,
        mems: Sequence[Any] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """A vector for each token to predict that has not seen it, or, without `target_mapping`, one for each token;
        and the memory for the next text.

        Shapes: ids (B, T) of integers; features (B, P, C), or (B, T, C) without `target_mapping`; memory (B, M, C) for
            each block, which no gradient reaches.
        token_types: (B, T), integers: the segment of each token. Only equality counts; the memory is of segment 0.
        lengths: (B,), the number of real tokens of each text, which come first; or instead
        attention_mask: (B, T), boolean or 0 and 1: true for real tokens. No token sees padding, and the result has no
            meaning at padding.
        perm_mask: (B, T, T), boolean or 0 and 1: true if token t, the second axis, may not see token s, the third. The
            content of a token always sees itself. Without a mask, a query sees the token that it is to predict.
        target_mapping: (B, P, T), boolean or 0 and 1: a 1 at the position of each token to predict; a row of zeros
            predicts nothing, and fills up texts with fewer than P.
        mems: one array (B, M, C) for each block, the memory of the text before this one, which all tokens see.
        Raises: ShapeError for shapes that do not fit; DtypeError and InputError for ids that are not in the table, or
            masks of another kind; InputError for lengths together with a mask, or an odd batch for bi_data.
        """
        name, config, weight = type(self).__name__, self.config, self.wte.weight.data
        given = {"ids": ids, "token_types": token_types, "attention_mask": attention_mask, "lengths": lengths}
        given |= {"perm_mask": perm_mask, "target_mapping": target_mapping}
        arrays = {key: _array(x, weight) for key, x in given.items() if x is not None}
        ids = arrays["ids"]
        if ids.ndim != 2 or not ids.shape[1]:
            raise ShapeError(f"{name}: ids have shape {ids.shape}; give (B, T), such as ids[None] for one sequence")
        axes = {"lengths": "B", "perm_mask": "B T T", "target_mapping": "B P T"}
        check_shapes(name, **{key: (axes.get(key, "B T"), x) for key, x in arrays.items()})
        if lengths is not None and attention_mask is not None:
            raise InputError(f"{name}: lengths and attention_mask both mark the real tokens; give one of them")
        for key in ("attention_mask", "perm_mask", "target_mapping"):
            if key in arrays and arrays[key].dtype.kind not in "biu":
                raise DtypeError(f"{name}: {key} has dtype {arrays[key].dtype}; give bool, or integers 0 and 1")
        if config.bi_data and len(ids) % 2:
            raise InputError(f"{name}: ids have B={len(ids)}; with bi_data give an even number, half of it backwards")
        memory = self._checked_memory(name, mems, len(ids))

        h = self.drop(self.wte(ids))  # (B, T, C)
        inputs = self._attention_inputs(name, arrays, 0 if memory is None else memory[0].shape[1])
        g = None
        if inputs.target_mapping is not None:
            g = self.drop(self.mask_emb.broadcast_to(len(ids), inputs.target_mapping.shape[2], config.channels))
        new_memory = []
        for number, block in enumerate(self.h):
            before = None if memory is None else memory[number]
            new_memory.append(self._remembered(h, before))
            h, g = block(h, g, before, inputs)
        return self.drop(h if g is None else g), new_memory

    def _attention_inputs(self, name: str, arrays: dict[str, Array], M: int) -> AttentionInputs:
        """The inputs of every block's attention, from the arguments of `features_and_mems` and M tokens of memory."""
        config, weight, ids = self.config, self.wte.weight.data, arrays["ids"]
        B, T = ids.shape
        distances = np.arange(M + T, -T, -1)
        if config.clamp_len > 0:
            distances = np.clip(distances, -config.clamp_len, config.clamp_len)
        directions = np.repeat([0, 1], B // 2) if config.bi_data else None
        table = sinusoids(np.stack([distances, -distances] if config.bi_data else [distances]), config.channels)

        hidden = None  # (B or 1, T, T)
        if "perm_mask" in arrays:
            hidden = arrays["perm_mask"] != 0
        real = arrays["attention_mask"] != 0 if "attention_mask" in arrays else None
        if "lengths" in arrays:
            check_index(name, arrays["lengths"], T + 1, "lengths")
            real = np.arange(T, like=ids) < arrays["lengths"][:, None]
        if real is not None:
            hidden = ~real[:, None] if hidden is None else hidden | ~real[:, None]
        query_mask = content_mask = differs = None
        if hidden is not None:
            hidden = np.broadcast_to(hidden, (B, T, T))
            query_mask = _beside_memory(~hidden, True, M)[:, None]
            content_mask = _beside_memory(
                ~hidden | (np.arange(T, like=ids)[:, None] == np.arange(T, like=ids)), True, M
            )[:, None]
        if "token_types" in arrays:
            if arrays["token_types"].dtype.kind not in "biu":
                raise DtypeError(f"{name}: token_types have dtype {arrays['token_types'].dtype}; give integers")
            kinds = arrays["token_types"].astype(np.int64)
            differs = kinds[:, None, :, None] != _beside_memory(kinds, 0, M)[:, None, None, :]
        mapping = None
        if "target_mapping" in arrays:
            mapping = Tensor((arrays["target_mapping"] != 0).astype(weight.dtype)[:, None])
        with random.part(rows=(0, len(table))):  # it is the table of all rows of the batch, on every rank
            table = self.drop(Tensor(like(table.astype(weight.dtype), weight)))
        return AttentionInputs(table, directions, differs, content_mask, query_mask, mapping)

    def _checked_memory(self, name: str, mems: Sequence[Any] | None, batch: int) -> list[Tensor] | None:
        """The memory as a tensor (B, M, C) without gradient for each block."""
        if mems is None:
            return None
        weight = self.wte.weight.data
        memory = [Tensor(_array(x, weight)) for x in mems]
        shapes = {x.shape for x in memory}
        wanted = (batch, memory[0].shape[1] if memory and memory[0].ndim == 3 else 0, self.config.channels)
        if len(memory) != self.config.layers or shapes != {wanted}:
            raise ShapeError(
                f"{name}: mems are {len(memory)} arrays of shapes {sorted(shapes)}; give {self.config.layers}, one for "
                f"each block, of one shape (B, M, C) with B={batch} and C={self.config.channels}"
            )
        return memory

    def _remembered(self, h: Tensor, memory: Tensor | None) -> Tensor:
        """The block's memory for the next text: the last mem_len tokens of its memory so far and its input h."""
        seen = h.data[:, : self.config.reuse_len]
        if memory is not None:
            seen = np.concatenate([memory.data, seen], 1)
        return Tensor(seen[:, -(self.config.mem_len or 0) :])


def _array(x: Any, weight: Array) -> Array:
    return like(x.data if isinstance(x, Tensor) else as_array(x), weight)


def _beside_memory(x: Array, value: Any, M: int) -> Array:
    """x (..., T) with M copies of `value` in front, for the memory: (..., M + T)."""
    return np.concatenate([np.full_like(x, value, shape=(*x.shape[:-1], M)), x], -1) if M else x


class XLNetLMHeadModel(XLNetModel):
    """An XLNet with its head: called as `features` is, it returns logits (B, P, V), or (B, T, V)."""

    def __init__(self, config: XLNetConfig):
        with uninitialized():  # all weights are drawn below
            super().__init__(config)
        self.bias = Parameter(np.zeros(config.vocab_size, np.float32))
        self.assign_names()
        self._init_weights()

    def forward(self, ids: Any, **inputs: Any) -> Tensor:
        return self.logits_and_mems(ids, **inputs)[0]

    def logits_and_mems(self, ids: Any, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, P, V), or (B, T, V), and the memory for the next text; see `features_and_mems`."""
        x, mems = self.features_and_mems(ids, **inputs)
        return ops.linear(x, self.wte.weight, self.bias), mems

    def loss(self, ids: Any, labels: Any, target_mapping: Any = None, **inputs: Any) -> Tensor:
        """Cross-entropy at the positions with a label, in nats for each; see `loss_and_mems`."""
        return self.loss_and_mems(ids, labels, target_mapping=target_mapping, **inputs)[0]

    def loss_and_mems(self, ids: Any, labels: Any, **inputs: Any) -> tuple[Tensor, list[Tensor]]:
        """Cross-entropy at the positions with a label, in nats for each, and the memory for the next text.

        Logits of the other positions are not computed.
        Shapes: labels (B, P), or (B, T) without `target_mapping`, of ids, and -100 for positions without a label; the
            other arguments are those of `features_and_mems`.
        Source: Yang et al. 2019, equation 5.
        """
        x, mems = self.features_and_mems(ids, **inputs)
        labels = _array(labels, x.data)
        sizes = check_shapes("loss", features=("B P C", x), labels=("B P", labels))
        labels = labels.reshape(-1)
        known = np.flatnonzero(labels != -100)
        x = x.reshape(labels.size, sizes["C"]).index_select(0, known)
        loss = ops.cross_entropy(ops.linear(x, self.wte.weight, self.bias), labels[known], overwrite=True)
        return loss, mems


class XLNetForSequenceClassification(SequenceClassification, XLNetModel):
    """An XLNet that classifies texts by two layers on the vector of the last real token, which is <cls>."""

    def __init__(self, config: XLNetConfig):
        with uninitialized():  # all weights are drawn below
            super().__init__(config)
        self.summary = Linear(config.channels, config.channels)
        self.drop_summary = Dropout(config.classifier_dropout)
        self.logits_proj = Linear(config.channels, config.labels)
        self.assign_names()
        self._init_weights()

    def forward(self, ids: Any, token_types: Any = None, lengths: Any = None, attention_mask: Any = None) -> Tensor:
        features = self.token_vectors(ids, token_types, lengths, attention_mask)
        B, T, _ = features.shape
        last = like(np.full(B, T - 1), features.data)  # (B,)
        if lengths is not None:
            last = _array(lengths, features.data) - 1
        elif attention_mask is not None:
            last = T - 1 - np.argmax(_array(attention_mask, features.data)[:, ::-1] != 0, axis=1)
        x = ops.tanh(self.summary(vectors_at(features, last)))  # (B, C)
        return self.logits_proj(self.drop_summary(x))


class XLNetForTokenClassification(TokenClassification, XLNetModel):
    """An XLNet that classifies tokens."""

    def __init__(self, config: XLNetConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head(dropout=0.0)
        self.assign_names()
        self._init_weights()


class XLNetForQuestionAnsweringSimple(QuestionAnswering, XLNetModel):
    """An XLNet that finds the answer to a question in a text; its start and its end are found independently."""

    def __init__(self, config: XLNetConfig):
        with uninitialized():
            super().__init__(config)
        self.add_head()
        self.assign_names()
        self._init_weights()


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "transformer."
IGNORED = ("lm_loss.weight",)  # a copy of the token table
LAYER = "transformer.layer.{i}"
TIED = {"lm_loss.weight": "transformer.word_embedding.weight"}
HUGGING_FACE: dict[str, str | tuple[str, ...]] = {
    "wte.weight": "transformer.word_embedding.weight",
    "mask_emb": "transformer.mask_emb",
    "h.{i}.attn.q.weight": f"{LAYER}.rel_attn.q",
    "h.{i}.attn.kv.weight": (f"{LAYER}.rel_attn.k", f"{LAYER}.rel_attn.v"),
    "h.{i}.attn.r.weight": f"{LAYER}.rel_attn.r",
    "h.{i}.attn.proj.weight": f"{LAYER}.rel_attn.o",
    **{
        f"h.{{i}}.attn.{name}": f"{LAYER}.rel_attn.{name}" for name in ("r_w_bias", "r_r_bias", "r_s_bias", "seg_embed")
    },
    **{
        f"h.{{i}}.{ours}.{kind}": f"{LAYER}.{theirs}.{kind}"
        for ours, theirs in {
            "ln_1": "rel_attn.layer_norm",
            "mlp.fc": "ff.layer_1",
            "mlp.proj": "ff.layer_2",
            "ln_2": "ff.layer_norm",
        }.items()
        for kind in ("weight", "bias")
    },
    "bias": "lm_loss.bias",
    **{
        f"{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in {
            "summary": "sequence_summary.summary",
            "logits_proj": "logits_proj",
            "classifier": "classifier",
            "qa_outputs": "qa_outputs",
        }.items()
        for kind in ("weight", "bias")
    },
}
TRANSPOSED = {f"h.{{i}}.attn.{part}.weight" for part in ("q", "kv", "r")}


def shape_in_hugging_face(config: XLNetConfig, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Convert our shape to Hugging Face's, where the last axis of attention's weights is split into heads (H, D)."""
    if name == "mask_emb":
        return (1, 1, *shape)
    return (*shape[:-1], config.heads, shape[-1] // config.heads) if ".attn." in name else shape
