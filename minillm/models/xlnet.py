"""XLNet (Yang et al. 2019, arXiv:1906.08237): it learns from both sides of a token by reading in any order.

A model of the next token sees what stands before it only; BERT sees both sides, but of the tokens that it hides none
knows of another. XLNet draws an order in which the tokens are to be read (data/permutation.py), and predicts each
from those that come before it in that order, wherever they stand:

    log p(x) = sum_n log p(x_z(n) | x_z(1), ..., x_z(n-1))        z an order of the positions, drawn anew each time

The text itself stays in place, and so do the positions; the order is nothing but a mask of who sees whom. Two things
follow from it. With ids (B, T), M tokens of memory, P tokens to predict, and Tk = M + T keys:

- Two streams (section 2.3). Whoever predicts a token must know where it stands, and not what it is; whoever comes
  later must know both. So each position has two vectors in every block: the content h, which has seen its own token,
  and the query g, which starts as the same learned vector for all and has not. Both ask, only the content answers:

      h_t = attention(query h_t, keys and values h_s, of s up to t in the order)
      g_t = attention(query g_t, keys and values h_s, of s before t in the order)

  with the same weights. g is made for the P tokens to predict only, and is what the output layer reads. Without
  `target_mapping` there is no g, each token sees every other, and h is the result: so the model is fine-tuned.

- Relative positions (Transformer-XL, Dai et al. 2019, arXiv:1901.02860, section 3.3). The score of query t and key s
  knows of positions only how far apart the two are, so a text may go on where another ended, whose vectors of every
  block are kept, without gradient, as memory. For one head, with R the sinusoids of a distance times a matrix:

      score_ts = ((q_t + r_w) . k_s  +  (q_t + r_r) . R_(t-s)  +  (q_t + r_s) . e_ts) / sqrt(D)

  r_w, r_r and r_s are learned, in each block; e_ts is one of two learned vectors, for tokens of the same segment (a
  sentence of two, say) and of different ones. There is no limit to the length of a text.

Blocks are those of BERT: the norm comes after each sum, GELU is the exact one, and the output layer is the token
table and a bias. Masks are -inf, so that what is hidden has no weight at all; a query that sees nothing, which is the
first of an order in a text without context and memory, gives 0. (transformers subtracts 1e30, which in that one case
leaves equal weights on every token, the hidden ones and itself among them.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minillm import ops
from minillm.autograd import Parameter, Tensor
from minillm.backend import Array, as_array
from minillm.device import like
from minillm.errors import DtypeError, InputError, ShapeError, check_index, check_shapes
from minillm.models.config import Config, check_fixed, config_from
from minillm.nn import Dropout, Embedding, LayerNorm, Linear, Module, normal_, uninitialized


@dataclass(frozen=True)
class XLNetConfig(Config):
    """The shape of an XLNet."""

    vocab_size: int = 32000  # V, number of token ids
    layers: int = 24  # L, number of blocks
    heads: int = 16  # H, attention heads per block; must divide channels
    channels: int = 1024  # C, width of the residual stream, even
    hidden: int = 4096  # width of the MLP
    dropout: float = 0.1  # probability, wherever there is dropout
    norm_eps: float = 1e-12  # added to the variance
    mem_len: int | None = None  # tokens that are remembered, the latest ones; all of them where it is None
    reuse_len: int | None = None  # of each text, the tokens that are remembered, the first ones; None: all of them
    clamp_len: int = -1  # distances beyond it count as this one; none is, where it is not above 0
    bi_data: bool = False  # whether the second half of each batch is written backwards

    def __post_init__(self):
        super().__post_init__()
        self.check_least(1, "vocab_size", "layers", "heads", "channels", "hidden")
        self.check_divides("heads", "channels")
        if self.channels % 2:
            raise InputError(f"XLNetConfig: channels={self.channels} is odd; sines and cosines need an even number")
        self.check_probabilities("dropout")
        self.check_above_zero("norm_eps")
        for field in ("mem_len", "reuse_len"):
            if getattr(self, field) is not None and getattr(self, field) < 1:
                raise InputError(f"XLNetConfig: {field} is {getattr(self, field)}; give 1 or more, or None for all")


PRESETS = {
    # for tests: 36 thousand weights
    "nano": XLNetConfig(256, layers=2, heads=2, channels=32, hidden=128, dropout=0.0),
    # of the paper: 117 and 360 million
    "xlnet-base-cased": XLNetConfig(layers=12, heads=12, channels=768, hidden=3072),
    "xlnet-large-cased": XLNetConfig(),
}


class Sight(NamedTuple):
    """What every block is told of a batch: how far apart tokens are, which belong together, and who sees whom."""

    distances: Tensor  # (1, T + Tk, C), the sinusoids of Tk, ..., -(T - 1); (2, ...) with their negatives
    directions: Array | None  # (B,), 0 or 1, which of the two a text is read with; None where there is one
    differs: Array | None  # (B, 1, T, Tk), whether two tokens are of different segments; None where nothing is said
    content: Array | None  # (B, 1, T, Tk), which keys the content of a position sees; None where it is all of them
    query: Array | None  # the same of the query of a position, which does not see its own
    mapping: Tensor | None  # (B, 1, P, T), a 1 at the position of each token to predict


def sinusoids(distances: Array, channels: int) -> Array:
    """sin(d w_i) for every i, then cos(d w_i), with w_i = 10000^(-2i/C): (..., C) of distances (...), in float64.

    Source: Vaswani et al. 2017, section 3.5, where the two alternate.
    """
    angle = distances[..., None] * 10000 ** (-np.arange(0, channels, 2) / channels)
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)


def relative_shift(x: Tensor) -> Tensor:
    """From a column for each distance to a column for each key: out[t, s] = x[t, T - t + s].

    In memory that is number t (R - 1) + s, counted from number T on, with R the length of a row: rows that are one
    shorter, cut off after Tk. (Column 0 is never read. It is there so that this works for one query, too.)

    Shapes: x (B, H, T, T + Tk), of which column i belongs to distance Tk - i; result (B, H, T, Tk).
    Source: Dai et al. 2019, appendix B.
    """
    B, H, T, R = x.shape
    return x.reshape(B, H, T * R)[..., T:].reshape(B, H, T, R - 1)[..., : R - T]


class RelativeAttention(Module):
    """Multi-head attention that knows distances and segments, of one stream or of two.

    There are no biases but the three that join the queries.
    """

    def __init__(self, config: XLNetConfig):
        C = config.channels
        self.q = Linear(C, C, bias=False)
        self.kv = Linear(C, 2 * C, bias=False)
        self.r = Linear(C, C, bias=False)  # keys of distances
        self.proj = Linear(C, C, bias=False)
        self.r_w_bias, self.r_r_bias, self.r_s_bias = (Parameter(np.zeros(C, np.float32)) for _ in range(3))
        self.seg_embed = Parameter(np.zeros((2, C), np.float32))  # keys of the same and of the other segment
        self.dropout = Dropout(config.dropout)
        self.heads = config.heads

    def forward(self, h: Tensor, g: Tensor | None, memory: Tensor | None, sight: Sight) -> tuple[Tensor, Tensor | None]:
        """What h (B, T, C) found in itself and in the memory (B, M, C), and what g (B, P, C) found there."""
        seen = h if memory is None else ops.concat([memory, h], 1)  # (B, Tk, C)
        k, v = (self._by_head(part) for part in self.kv(seen).split(h.shape[-1], dim=-1))  # (B, H, Tk, D)
        r = self._by_head(self.r(sight.distances))  # (1 or 2, H, T + Tk, D)
        if sight.directions is not None:
            r = r.index_select(0, sight.directions)  # (B, H, T + Tk, D)
        q = self._by_head(self.q(h))
        found = self._join(self._attend(q, k, v, r, sight.differs, sight.content))
        if g is None or sight.mapping is None:
            return found, None
        q = sight.mapping.transpose(-1, -2) @ self._by_head(self.q(g))  # (B, H, T, D): each to its position
        y = self._attend(q, k, v, r, sight.differs, sight.query)
        return found, self._join(sight.mapping @ y)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, r: Tensor, differs: Array | None, visible: Array | None):
        """softmax(scores) V, (B, H, T, D), with the scores at the top of this file."""
        H, D = self.heads, q.shape[-1]

        def asking(bias: Tensor) -> Tensor:
            return (q + bias.reshape(H, 1, D)) * D**-0.5

        scores = asking(self.r_w_bias) @ k.transpose(-1, -2)  # (B, H, T, Tk)
        scores = scores + relative_shift(asking(self.r_r_bias) @ r.transpose(-1, -2))
        if differs is not None:
            segments = asking(self.r_s_bias) @ self.seg_embed.reshape(2, H, D).permute(1, 2, 0)  # (B, H, T, 2)
            scores = scores + ops.where(differs, segments[..., 1:], segments[..., :1])
        if visible is None:
            return self.dropout(scores.softmax()) @ v
        sees_any = visible.any(-1, keepdims=True)  # a softmax over nothing would be NaN
        scores = ops.where(visible | ~sees_any, scores, -np.inf)
        return ops.where(sees_any, self.dropout(scores.softmax()) @ v, 0.0)

    def _by_head(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        return x.reshape(B, T, self.heads, C // self.heads).transpose(1, 2)  # (B, H, T, D)

    def _join(self, y: Tensor) -> Tensor:
        B, H, T, D = y.shape
        return self.dropout(self.proj(y.transpose(1, 2).reshape(B, T, H * D)))


class MLP(Module):
    """Two linear layers with the exact GELU between: that of nn.py, but with dropout after the GELU, too."""

    def __init__(self, config: XLNetConfig):
        self.fc = Linear(config.channels, config.hidden)
        self.proj = Linear(config.hidden, config.channels)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.proj(self.dropout(ops.gelu(self.fc(x)))))


class Block(Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), of each stream."""

    def __init__(self, config: XLNetConfig):
        self.attn = RelativeAttention(config)
        self.ln_1 = LayerNorm(config.channels, config.norm_eps)
        self.mlp = MLP(config)
        self.ln_2 = LayerNorm(config.channels, config.norm_eps)

    def forward(self, h: Tensor, g: Tensor | None, memory: Tensor | None, sight: Sight) -> tuple[Tensor, Tensor | None]:
        found_h, found_g = self.attn(h, g, memory, sight)
        return self._after(h, found_h), None if g is None else self._after(g, found_g)

    def _after(self, x: Tensor, found: Tensor | None) -> Tensor:
        _, x = self.ln_1(x, found)  # the norm of the sum
        _, x = self.ln_2(x, self.mlp(x))
        return x


class XLNetModel(Module):
    """XLNet without its head: called with ids (B, T), it returns features; see `features`."""

    def __init__(self, config: XLNetConfig):
        self.config = config
        self.wte = Embedding(config.vocab_size, config.channels)  # tokens; also the output layer
        self.mask_emb = Parameter(np.zeros(config.channels, np.float32))  # where every query starts
        self.drop = Dropout(config.dropout)
        self.h = [Block(config) for _ in range(config.layers)]
        self.assign_names()
        self._init_weights()

    def _init_weights(self) -> None:
        """Matrices, the biases of queries, and where g starts, from N(0, 0.02); other biases 0, norms 1.

        Source: Yang et al.'s code (init_std).
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 or name.endswith(("mask_emb", "r_w_bias", "r_r_bias", "r_s_bias")):
                normal_(parameter.data, 0.02)
            elif name.endswith("bias"):
                parameter.data[...] = 0

    def features(
        self,
        ids: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
        perm_mask: Any = None,
        target_mapping: Any = None,
        mems: Sequence[Any] | None = None,
        use_mems: bool = False,
    ) -> Any:
        """A vector for each token to predict, which has not seen it, or, without `target_mapping`, for each token.

        Shapes: ids (B, T) of integers; result (B, P, C), or (B, T, C) without `target_mapping`.
        token_types: (B, T), integers: the segment of each token, of which only counts whether two are the same; the
            memory is of segment 0.
        lengths: (B,), of each text the number of real tokens, which come first; or else
        attention_mask: (B, T), boolean or 0 and 1: which tokens are real. No token sees one that is not, and what
            stands at its place in the result has no meaning.
        perm_mask: (B, T, T), boolean or 0 and 1: whether token t, the second axis, may not see token s, the third. The
            content of a token always sees itself. Without a mask a query sees the token that it is to predict.
        target_mapping: (B, P, T), boolean or 0 and 1: the position of each token to predict, by a 1 there; a row of 0
            predicts nothing, and fills up texts with fewer than P.
        mems: one array (B, M, C) for each block, the memory that the text before this one left, which all tokens see.
        use_mems: whether to return a pair, with the memory for the next text; no gradient goes through it.
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
            raise InputError(f"{name}: lengths and attention_mask both say which tokens are real; give one of them")
        for key in ("attention_mask", "perm_mask", "target_mapping"):
            if key in arrays and arrays[key].dtype.kind not in "biu":
                raise DtypeError(f"{name}: {key} has dtype {arrays[key].dtype}; give bool, or integers 0 and 1")
        if config.bi_data and len(ids) % 2:
            raise InputError(f"{name}: ids have B={len(ids)}; with bi_data give an even number, half of it backwards")
        memory = self._checked_memory(name, mems, len(ids))

        h = self.drop(self.wte(ids))  # (B, T, C)
        sight = self._sight(name, arrays, 0 if memory is None else memory[0].shape[1])
        g = None
        if sight.mapping is not None:
            g = self.drop(self.mask_emb.broadcast_to(len(ids), sight.mapping.shape[2], config.channels))
        new_memory = []
        for i, block in enumerate(self.h):
            before = None if memory is None else memory[i]
            if use_mems:
                new_memory.append(self._remembered(h, before))
            h, g = block(h, g, before, sight)
        x = self.drop(h if g is None else g)
        return (x, new_memory) if use_mems else x

    def _sight(self, name: str, arrays: dict[str, Array], M: int) -> Sight:
        """All that the blocks are told, of M tokens of memory and what `features` was given."""
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
        query = content = differs = None
        if hidden is not None:
            hidden = np.broadcast_to(hidden, (B, T, T))
            query = _beside_memory(~hidden, True, M)[:, None]
            content = _beside_memory(~hidden | np.eye(T, dtype=bool, like=ids), True, M)[:, None]
        if "token_types" in arrays:
            if arrays["token_types"].dtype.kind not in "biu":
                raise DtypeError(f"{name}: token_types have dtype {arrays['token_types'].dtype}; give integers")
            kinds = arrays["token_types"].astype(np.int64)
            differs = kinds[:, None, :, None] != _beside_memory(kinds, 0, M)[:, None, None, :]
        mapping = None
        if "target_mapping" in arrays:
            mapping = Tensor((arrays["target_mapping"] != 0).astype(weight.dtype)[:, None])
        table = self.drop(Tensor(like(table.astype(weight.dtype), weight)))
        return Sight(table, directions, differs, content, query, mapping)

    def _checked_memory(self, name: str, mems: Sequence[Any] | None, batch: int) -> list[Tensor] | None:
        """One tensor (B, M, C) without history for each block."""
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
        """What the next text sees of a block's input h, and of what it saw before: the last mem_len tokens."""
        seen = h.data[:, : self.config.reuse_len]
        if memory is not None:
            seen = np.concatenate([memory.data, seen], 1)
        return Tensor(seen[:, -(self.config.mem_len or 0) :])

    forward = features


def _array(x: Any, weight: Array) -> Array:
    return like(x.data if isinstance(x, Tensor) else as_array(x), weight)


def _beside_memory(x: Array, value: Any, M: int) -> Array:
    """(..., T) with M times the value before it, for the memory: (..., M + T)."""
    return np.concatenate([np.full_like(x, value, shape=(*x.shape[:-1], M)), x], -1) if M else x


class XLNetLMHeadModel(XLNetModel):
    """An XLNet with its head: called as `features` is, it returns logits (B, P, V), or (B, T, V)."""

    def __init__(self, config: XLNetConfig):
        with uninitialized():  # numbers are drawn below, for all
            super().__init__(config)
        self.bias = Parameter(np.zeros(config.vocab_size, np.float32))
        self.assign_names()
        self._init_weights()

    def forward(
        self,
        ids: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
        perm_mask: Any = None,
        target_mapping: Any = None,
        mems: Sequence[Any] | None = None,
        use_mems: bool = False,
    ) -> Any:
        x, mems = self.features(ids, token_types, lengths, attention_mask, perm_mask, target_mapping, mems, True)
        logits = ops.linear(x, self.wte.weight, self.bias)
        return (logits, mems) if use_mems else logits

    def loss(
        self,
        ids: Any,
        labels: Any,
        token_types: Any = None,
        lengths: Any = None,
        attention_mask: Any = None,
        perm_mask: Any = None,
        target_mapping: Any = None,
        mems: Sequence[Any] | None = None,
        use_mems: bool = False,
    ) -> Any:
        """Cross-entropy at the positions that have a label, in nats for each: logits of the others are not made.

        Shapes: labels (B, P), or (B, T) without `target_mapping`, of ids, and -100 where there is nothing to say; the
            rest as in `features`. With use_mems it returns a pair, with the memory for the next text.
        Source: Yang et al. 2019, equation 5.
        """
        x, mems = self.features(ids, token_types, lengths, attention_mask, perm_mask, target_mapping, mems, True)
        labels = _array(labels, x.data)
        sizes = check_shapes("loss", features=("B P C", x), labels=("B P", labels))
        labels = labels.reshape(-1)
        known = np.flatnonzero(labels != -100)
        x = x.reshape(labels.size, sizes["C"]).index_select(0, known)
        loss = ops.cross_entropy(ops.linear(x, self.wte.weight, self.bias), labels[known], overwrite=True)
        return (loss, mems) if use_mems else loss


# --- Hugging Face's names ------------------------------------------------------------------------------------------

PREFIX = "transformer."
IGNORED = ("lm_loss.weight",)  # a tied copy
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
}
TRANSPOSED = {f"h.{{i}}.attn.{part}.weight" for part in ("q", "kv", "r")}
# Of each field of the configuration the key there, and what it is where the key is missing.
KEYS: dict[str, tuple[str, Any]] = {
    "vocab_size": ("vocab_size", 32000),
    "layers": ("n_layer", 24),
    "heads": ("n_head", 16),
    "channels": ("d_model", 1024),
    "hidden": ("d_inner", 4096),
    "dropout": ("dropout", 0.1),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "mem_len": ("mem_len", 512),
    "reuse_len": ("reuse_len", None),
    "clamp_len": ("clamp_len", -1),
    "bi_data": ("bi_data", False),
}
FIXED = {
    "model_type": "xlnet",
    "attn_type": "bi",  # "uni" is Transformer-XL
    "ff_activation": "gelu",
    "same_length": False,
    "untie_r": True,
    "tie_word_embeddings": True,
}


def shape_in_hugging_face(config: XLNetConfig, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """What is `shape` here, as it is there: in attention the last axis, of channels, is cut into heads (H, D)."""
    if name == "mask_emb":
        return (1, 1, *shape)
    return (*shape[:-1], config.heads, shape[-1] // config.heads) if ".attn." in name else shape


def config_from_hugging_face(values: Mapping[str, Any]) -> XLNetConfig:
    """From the values of a config.json of model type xlnet.

    Raises: InputError for what this model cannot do, and for keys that have another type or do not fit, by name.
    """
    check_fixed(values, {key: (only,) for key, only in FIXED.items()})
    no_limit = {field: None for field in ("mem_len", "reuse_len") if values.get(KEYS[field][0]) == 0}  # 0 is that there
    config = config_from(XLNetConfig, KEYS, values, nulls=("mem_len", "reuse_len"), **no_limit)
    head_size = config.channels // config.heads
    if values.get("d_head") not in (None, head_size):
        raise InputError(
            f"load: config.json has d_head={values['d_head']!r}; here it can only be {head_size}, which is "
            f" d_model={config.channels} by n_head={config.heads}"
        )
    return config


def config_to_hugging_face(config: XLNetConfig) -> dict[str, Any]:
    """The values of a config.json."""
    return {
        "architectures": ["XLNetLMHeadModel"],
        **{key: getattr(config, field) for field, (key, _) in KEYS.items()},
        "d_head": config.channels // config.heads,
        **FIXED,
    }
