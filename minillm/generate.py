"""Generate text from a language model: one token at a time, each drawn from the model's next-token distribution.

`generate` continues one sequence, token by token; `generate_batch` continues several at once; `generate_text` streams
text for a text prompt. Keys and values depend only on earlier tokens, so they are cached, and each new token costs the
computation of one position. Sequences of different lengths are aligned at their ends in one array:

    [.  .  The]      the first two positions of the first row in the cache are padding: no token sees them,
    [A  cat is]      and the positions of that row count from where its text begins

so each row gets the same tokens as it would alone.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from minillm.autograd import Tensor, no_grad
from minillm.backend import Array
from minillm.device import to_host
from minillm.errors import DtypeError, InputError
from minillm.grad_mode import quiet
from minillm.nn import Decoder, KVCache, Module
from minillm.text_stream import TextCoder, TextStream


@dataclass(frozen=True)
class Sampling:
    """The settings for drawing a token from softmax(logits / temperature), cut to the likeliest tokens and rescaled.

    `top_k`, `top_p` and `min_p` may be given together, and apply in this order.
    """

    temperature: float = 1.0  # 0 puts all weight on the largest logit
    top_k: int | None = None  # keep the k likeliest tokens
    top_p: float | None = (
        None  # keep the fewest tokens that together reach probability p (Holtzman 2019, arXiv:1904.09751)
    )
    min_p: float | None = None  # keep tokens with this share of the likeliest's probability (Nguyen 2024, 2407.01082)
    repetition_penalty: float = 1.0  # see `probabilities` (Keskar et al. 2019, arXiv:1909.05858, section 4.1)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, numbers.Real) and (value is not None or field.default is not None):
                raise DtypeError(f"generate: {field.name} is {value!r}; give a number")
        if not self.temperature >= 0:
            raise InputError(f"generate: temperature is {self.temperature}; give 0 (the likeliest token) or more")
        if self.top_k is not None and (not isinstance(self.top_k, numbers.Integral) or self.top_k < 1):
            raise InputError(f"generate: top_k is {self.top_k}; give the number of tokens to choose from, 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"generate: top_p is {self.top_p}; give a probability above 0, at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"generate: min_p is {self.min_p}; give a share of the likeliest token's, from 0 to 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise InputError(
                f"generate: repetition_penalty is {self.repetition_penalty}; give more than 0 (1 changes nothing)"
            )

    def probabilities(self, logits: Array, seen: Sequence[int] = ()) -> Array:
        """The distribution to draw from.

        First, the logits of tokens in `seen` are divided by `repetition_penalty` where they are positive, and
        multiplied by it where they are negative.
        A logit of -inf keeps its token from being drawn.
        Shapes: logits (V,); result (V,) in float64.
        Raises: InputError as `check_logits`.
        """
        logits = np.array(logits, np.float64)
        check_logits("generate", logits)
        if self.repetition_penalty != 1 and len(seen):
            again = np.unique(np.asarray(seen))
            factors = np.where(logits[again] > 0, 1 / self.repetition_penalty, self.repetition_penalty)
            with np.errstate(over="ignore"):  # numbers beyond the range of float64 are clipped to it
                changed = np.nan_to_num(logits[again] * factors)
            logits[again] = np.where(np.isfinite(logits[again]), changed, logits[again])
        order = np.argsort(-logits, kind="stable")  # likeliest first; equal ones by id
        order = order[: np.count_nonzero(np.isfinite(logits))]
        probabilities = np.zeros(len(logits))
        if self.temperature == 0:
            probabilities[order[0]] = 1
            return probabilities
        if self.top_k is not None:
            order = order[: self.top_k]
        with np.errstate(over="ignore"):  # a tiny temperature makes it -inf, whose exp is 0
            weights = np.exp((logits[order] - logits[order[0]]) / self.temperature)
        weights /= weights.sum()
        if self.top_p is not None:
            fewest = int(np.searchsorted(np.cumsum(weights), self.top_p * (1 - 1e-12))) + 1
            order, weights = order[:fewest], weights[:fewest] / weights[:fewest].sum()
        if self.min_p is not None:
            likely = weights >= self.min_p * weights[0]
            order, weights = order[likely], weights[likely] / weights[likely].sum()
        probabilities[order] = weights
        return probabilities


class Sequences:
    """Token sequences that grow, and the keys and values that the model has cached for them.

    The model sees as many tokens of each as its context holds. Once a sequence is longer, positions shift with every
    token, and each token costs a pass over the whole window.
    function: the public function, for errors.
    cache: the cache of an earlier call whose tokens begin each of these prompts; the cached positions are not computed
        again.
    """

    def __init__(
        self,
        function: str,
        model: Decoder,
        prompts: Sequence[Sequence[int] | Array],
        cache: list[KVCache] | None = None,
    ):
        self.function, self.model = function, model
        self.ids = [token_ids(function, "the prompt", prompt, model.config.vocab_size) for prompt in prompts]
        if not all(self.ids):
            raise InputError(f"{function}: the prompt has no tokens; give at least one character of text")
        self.prompts = list(range(len(self.ids)))  # the prompt that each text continues
        self.steps = 0  # number of new tokens of each
        self.cache = model.new_cache(len(self.ids)) if cache is None else cache
        length = min(map(len, self.ids), default=0)
        if cache is not None and self.cache[0].length >= length:
            raise InputError(
                f"{function}: the prompt has {length} tokens, but the cache holds {self.cache[0].length} already; give "
                "all of those before and at least one more, or a new cache"
            )

    def next_logits(self) -> Array:
        """Logits of the next token of each text, (B, V), on the host.

        Raises: InputError as `check_logits`.
        """
        context, cached, padding = self.model.config.context, self.cache[0].length, self.cache[0].padding
        starts = np.zeros(len(self.ids), int) + cached - (0 if padding is None else padding)
        new = [text[start:] for text, start in zip(self.ids, starts.tolist(), strict=True)]
        stop = cached + len(new[0])
        if not cached or stop > context or not _keeps_cache(self.model, cached, stop):
            new = [text[-context:] for text in self.ids]
            padding = max(map(len, new)) - np.array([len(window) for window in new])
            for one in self.cache:
                one.restart(padding if padding.any() else None)
            new = [[0] * pad + window for pad, window in zip(padding.tolist(), new, strict=True)]
        with no_grad(), quiet():
            logits = to_host(self.model.next_logits(np.array(new), self.cache).data)
        for row, prompt in zip(logits, self.prompts, strict=True):
            check_logits(self.function, row, f" of new token {self.steps} of prompt {prompt}")
        return logits

    def append(self, tokens: Sequence[int]) -> None:
        """Append a token to each text."""
        self.steps += 1
        for text, token in zip(self.ids, tokens, strict=True):
            text.append(token)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these texts, in this order; one may be repeated."""
        if list(rows) != list(range(len(self.ids))):
            self.ids = [list(self.ids[row]) for row in rows]
            self.prompts = [self.prompts[row] for row in rows]
            for one in self.cache:
                one.select(np.array(rows, np.int64))


def end_tokens(model: Any) -> Sequence[int]:
    """The token ids that end a text, if the model's files name any; a model that is not a Decoder has none."""
    return getattr(model, "eos_ids", ())


def _keeps_cache(model: Any, start: int, stop: int) -> bool:
    """True if the cache serves these positions (see Decoder.keeps_cache), as it does in a model without that method."""
    return not hasattr(model, "keeps_cache") or model.keeps_cache(start, stop)


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Put the model in evaluation mode until the block ends; then restore the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def generate(
    model: Decoder,
    ids: Sequence[int] | Array,
    max_tokens: int,
    *,
    seed: int = 0,
    stop: Sequence[int] | None = None,
    cache: list[KVCache] | None = None,
    **sampling: Any,
) -> Iterator[int]:
    """Yield up to `max_tokens` new token ids that continue `ids`, ending early after an id in `stop`.

    stop: by default the model's own end tokens, `model.eos_ids`; give () for none.
    The same seed gives the same tokens. The other settings are those of Sampling, such as `temperature=0`.
    cache: a `model.new_cache()` to keep from call to call, if the ids of every call begin with all earlier ones, as in
        a conversation: only the new tokens are computed.
    Raises: InputError or DtypeError for arguments that cannot be used, at the call; later, InputError for logits that
        are NaN or inf.
    """
    draw = _Draw(Sampling(**sampling), seed)
    texts = Sequences("generate", model, [ids], cache)
    count = whole_number("generate", "max_tokens", max_tokens)
    return _tokens(texts, draw, count, stop_ids("generate", stop, model))


def _tokens(texts: Sequences, draw: _Draw, count: int, stop: Collection[int]) -> Iterator[int]:
    with evaluating(texts.model):
        for _ in range(count):
            [logits] = texts.next_logits()
            token = draw(logits, texts.ids[0])
            texts.append([token])
            yield token
            if token in stop:
                return


def generate_batch(
    model: Decoder,
    prompts: Sequence[Sequence[int] | Array],
    max_tokens: int,
    *,
    seed: int = 0,
    stop: Sequence[int] | None = None,
    **sampling: Any,
) -> list[list[int]]:
    """Return the new token ids of several prompts, of any lengths, computed together.

    Up to rounding, prompt i gets the tokens of `generate(model, prompts[i], max_tokens, seed=seed + i, ...)`. A text
    that has ended is not computed any further.
    Raises: as `generate`.
    """
    settings = Sampling(**sampling)
    draws = [_Draw(settings, whole_number("generate_batch", "seed", seed) + i) for i in range(len(prompts))]
    count, ends = (
        whole_number("generate_batch", "max_tokens", max_tokens),
        stop_ids("generate_batch", stop, model),
    )
    results: list[list[int]] = [[] for _ in prompts]
    if not len(prompts):
        return results
    texts = Sequences("generate_batch", model, prompts)
    with evaluating(model):
        for _ in range(count):
            logits = texts.next_logits()
            tokens = [draws[i](row, text) for i, row, text in zip(texts.prompts, logits, texts.ids, strict=True)]
            texts.append(tokens)
            for i, token in zip(texts.prompts, tokens, strict=True):
                results[i].append(token)
            going = [row for row, token in enumerate(tokens) if token not in ends]
            if not going:
                break
            texts.select(going)
    return results


def generate_text(
    model: Decoder,
    tokenizer: TextCoder,
    prompt: str | Sequence[int],
    max_tokens: int,
    *,
    stop: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    **settings: Any,
) -> Iterator[str]:
    """Yield pieces of the text that follows `prompt`, as soon as they are certain, up to `max_tokens` tokens.

    The text ends before a token in `stop`, and before the first of `stop_strings`, even if that spans several tokens. A
    character of several tokens is yielded when it is complete, even if it began in the prompt; an incomplete one comes
    at the end, as U+FFFD. The prompt is text, before which come the tokens that the tokenizer puts in front of every
    text, or token ids, which are complete; the other settings are those of `generate`.
    Raises: as `generate`.
    """
    ends = stop_ids("generate_text", stop, model)
    if isinstance(prompt, str):
        ids = [*getattr(tokenizer, "before_text", list)(), *tokenizer.encode(prompt)]
    else:
        ids = token_ids("generate_text", "the prompt", prompt)
    tokens = generate(model, ids, max_tokens, stop=stop, **settings)
    return _pieces(TextStream(tokenizer, ids, stop_strings), tokens, ends)


def _pieces(stream: TextStream, tokens: Iterator[int], ends: Collection[int]) -> Iterator[str]:
    for token in tokens:
        if token in ends:
            break
        if piece := stream.add(token):
            yield piece
        if stream.ended:
            return
    if rest := stream.rest():
        yield rest


class _Draw:
    """Draws tokens with its own random stream."""

    def __init__(self, sampling: Sampling, seed: int):
        if not 0 <= whole_number("generate", "seed", seed) < 1 << 64:
            raise InputError(f"generate: seed is {seed}; give 0 or more, below 2**64")
        self.sampling, self.rng = sampling, np.random.Generator(np.random.Philox(key=seed))

    def __call__(self, logits: Array, seen: Sequence[int]) -> int:
        probabilities = self.sampling.probabilities(logits, seen)
        return int(self.rng.choice(len(probabilities), p=probabilities))


def whole_number(function: str, name: str, value: Any, least: int = 0) -> int:
    """Convert to a Python int; raises DtypeError for a value that is not one, InputError for one below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise DtypeError(f"{function}: {name} is {value!r}; give a whole number, {least} or more") from None
    if number < least:
        raise InputError(f"{function}: {name} is {number}; give {least} or more")
    return number


def stop_ids(function: str, stop: Any, model: Any) -> frozenset[int]:
    """The ids of `stop`, or the model's own for None; ids outside the vocabulary are allowed, as they never occur."""
    if stop is None:
        return frozenset(end_tokens(model))
    if isinstance(stop, str | bytes) or not hasattr(stop, "__iter__"):
        such = f", such as [{stop}]" if isinstance(stop, numbers.Integral) else "; stop strings are for generate_text"
        raise InputError(f"{function}: stop is {stop!r}; give a list of token ids{such}")
    return frozenset(token_ids(function, "stop", stop))


def token_ids(function: str, what: str, ids: Any, vocab_size: int | None = None) -> list[int]:
    """Convert token ids to a list of Python ints below `vocab_size`; a number such as 1.5 is refused, not truncated.

    Raises: DtypeError for a value that is not a sequence of integers, InputError for an id that is out of range.
    """
    try:
        found = [operator.index(i) for i in (ids.data if isinstance(ids, Tensor) else ids)]
    except TypeError:
        given = f"{ids!r:.60}"
        raise DtypeError(
            f"{function}: {what} is {given}; give a sequence of whole numbers, such as tokenizer.encode returns"
        ) from None
    for i in found:
        if vocab_size is not None and not 0 <= i < vocab_size:
            raise InputError(
                f"{function}: token id {i} is out of range; expected 0 to {vocab_size - 1}, the model's vocabulary"
            )
    return found


def check_logits(function: str, logits: Array, where: str = "") -> None:
    """Raise InputError for logits (V,) from which no token can be chosen: one is NaN or inf, or all are -inf.

    Some logits may be -inf: such a token has probability 0.
    """
    finite = np.isfinite(logits)
    if finite.all():
        return
    bad = np.flatnonzero(~finite & ~(logits == -np.inf))
    fix = "look at the model's weights, which a training that diverged or a damaged file leaves so"
    if len(bad):
        raise InputError(
            f"{function}: {len(bad)} of the {len(logits)} logits{where} are not finite numbers, the first of them, of "
            f"token id {bad[0]}, is {logits[bad[0]]}; {fix}"
        )
    if not finite.any():
        raise InputError(f"{function}: all {len(logits)} logits{where} are -inf, so no token is left to choose; {fix}")


class Guess(NamedTuple):
    """A token for a masked position, with its probability."""

    id: int
    probability: float


def fill_mask(model: Any, ids: Sequence[int] | Array, mask_id: int, top_k: int = 5, **given: Any) -> list[list[Guess]]:
    """Find the `top_k` likeliest tokens for each mask token in `ids`, with a masked language model.

    model: such as BertForMaskedLM or RobertaForMaskedLM; ids: (T,), with the tokens that the model expects around a
    text, such as [CLS] and [SEP]; given: other inputs of `model.features`, such as token_types (1, T).
    Raises: InputError if no token is masked, or for logits that are NaN or inf; DtypeError for ids of floats.
    """
    ids = np.array(token_ids("fill_mask", "ids", ids, model.config.vocab_size))
    count = whole_number("fill_mask", "top_k", top_k, 1)
    hidden = np.flatnonzero(ids == mask_id)
    if not len(hidden):
        raise InputError(f"fill_mask: none of the ids is the mask token, {mask_id}; put it in the place of a token")
    with evaluating(model), no_grad(), quiet():
        features = model.features(ids[None], **given)[0].index_select(0, hidden)
        logits = to_host(model.head(features, model.wte.weight).data)
    guesses = []
    for place, row in zip(hidden, logits, strict=True):
        check_logits("fill_mask", row, f" at position {place}")
        probabilities = Sampling().probabilities(row)
        likeliest = np.argsort(-probabilities, kind="stable")[:count]
        guesses.append([Guess(int(i), float(probabilities[i])) for i in likeliest])
    return guesses
