"""Text from a language model: one token at a time, each drawn from the model's distribution of the next.

`generate` continues one text, token by token; `generate_batch` several at once; `generate_text` goes from text to text.
What comes next depends on the tokens so far alone, so keys and values are cached, and a token costs one position.
Texts of different lengths stand in one array with their ends aligned:

    [.  .  The]      of the cache, the first two positions of the first row are padding: nothing sees them,
    [A  cat is]      and the positions of that row count from where its text begins

so each row gets what it would get alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from minillm.autograd import no_grad
from minillm.backend import Array
from minillm.device import to_host
from minillm.errors import InputError
from minillm.nn import Decoder, KVCache, Module


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: from softmax(logits / temperature), cut to the likeliest tokens and rescaled to 1.

    `top_k`, `top_p` and `min_p` may be given together, and apply in this order.
    """

    temperature: float = 1.0  # 0 puts all weight on the largest logit
    top_k: int | None = None  # keep the k likeliest tokens
    top_p: float | None = None  # keep the fewest that together reach probability p (Holtzman 2019, arXiv:1904.09751)
    min_p: float | None = None  # keep those with this share of the likeliest's probability (Nguyen 2024, 2407.01082)
    repetition_penalty: float = 1.0  # see `probabilities` (Keskar et al. 2019, arXiv:1909.05858, section 4.1)

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise InputError(f"generate: temperature is {self.temperature}; give 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"generate: top_k is {self.top_k}; give the number of tokens to choose from, 1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"generate: top_p is {self.top_p}; give a probability above 0, at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"generate: min_p is {self.min_p}; give a share of the likeliest token's, from 0 to 1")
        if not self.repetition_penalty > 0:
            raise InputError(
                f"generate: repetition_penalty is {self.repetition_penalty}; give more than 0 (1 changes nothing)"
            )

    def probabilities(self, logits: Array, seen: Sequence[int] = ()) -> Array:
        """The distribution to draw from.

        Before all else, the logits of tokens in `seen` are divided by `repetition_penalty` where they are positive, and
        multiplied by it where they are negative.
        Shapes: logits (V,); result (V,) in float64.
        """
        logits = np.array(logits, np.float64)
        if self.repetition_penalty != 1 and len(seen):
            again = np.unique(np.asarray(seen))
            logits[again] *= np.where(logits[again] > 0, 1 / self.repetition_penalty, self.repetition_penalty)
        order = np.argsort(-logits, kind="stable")  # likeliest first; equal ones by id
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


class Texts:
    """Texts that grow, and what the model has cached of them.

    The model sees as much of each as its context holds. When one is longer, positions shift with every token, and each
    costs the whole window.
    cache: of an earlier call, in which each of the prompts began as it does now; what it holds is not computed again.
    """

    def __init__(self, model: Decoder, prompts: Sequence[Sequence[int] | Array], cache: list[KVCache] | None = None):
        self.model, self.ids = model, [[int(i) for i in prompt] for prompt in prompts]
        if not all(self.ids):
            raise InputError("generate: the prompt has no tokens; give at least one character of text")
        self.cache = model.new_cache(len(self.ids)) if cache is None else cache

    def next_logits(self) -> Array:
        """Of what follows each text, (B, V), on the host."""
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
        with no_grad():
            return to_host(self.model.next_logits(np.array(new), self.cache).data)

    def append(self, tokens: Sequence[int]) -> None:
        """One token to each text."""
        for text, token in zip(self.ids, tokens, strict=True):
            text.append(token)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these texts, in this order; one may be there twice."""
        if list(rows) != list(range(len(self.ids))):
            self.ids = [list(self.ids[row]) for row in rows]
            for one in self.cache:
                one.select(np.array(rows, np.int64))


def end_tokens(model: Any) -> Sequence[int]:
    """Those that end a text, where the model's files say so; a model may also be no Decoder, and say nothing."""
    return getattr(model, "eos_ids", ())


def _keeps_cache(model: Any, start: int, stop: int) -> bool:
    """As `Decoder.keeps_cache`, which a model that is no Decoder may lack."""
    return not hasattr(model, "keeps_cache") or model.keeps_cache(start, stop)


@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Within, the model is in evaluation mode; after, in the one that it was in."""
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
    cache: a `model.new_cache()` that is kept from call to call, where every call's ids begin with all of those before,
        as in a conversation: only what is new is computed.
    """
    draw = _Draw(Sampling(**sampling), seed)
    stop = end_tokens(model) if stop is None else stop
    texts = Texts(model, [ids], cache)
    _check_max_tokens("generate", max_tokens)
    with evaluating(model):
        for _ in range(max_tokens):
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
    """The new token ids of several prompts, of any lengths, computed together.

    Prompt i is continued as `generate(model, prompts[i], max_tokens, seed=seed + i, ...)` does it, but for rounding.
    A text that has ended costs nothing more.
    """
    settings, stop = Sampling(**sampling), end_tokens(model) if stop is None else stop
    draws = [_Draw(settings, seed + number) for number in range(len(prompts))]
    _check_max_tokens("generate_batch", max_tokens)
    results: list[list[int]] = [[] for _ in prompts]
    if not len(prompts):
        return results
    texts, alive = Texts(model, prompts), list(range(len(prompts)))
    with evaluating(model):
        for _ in range(max_tokens):
            logits = texts.next_logits()
            tokens = [draws[i](row, text) for i, row, text in zip(alive, logits, texts.ids, strict=True)]
            texts.append(tokens)
            for i, token in zip(alive, tokens, strict=True):
                results[i].append(token)
            going = [row for row, token in enumerate(tokens) if token not in stop]
            if not going:
                break
            texts.select(going)
            alive = [alive[row] for row in going]
    return results


class TextCoder(Protocol):
    """What a tokenizer does here."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


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

    It ends before a token in `stop`, and before the first of `stop_strings`, even one that spreads over several tokens.
    A character of several tokens comes when it is complete. The prompt is text, or token ids; the other settings are
    those of `generate`.
    """
    stop = end_tokens(model) if stop is None else stop
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt]
    stream = TextStream(tokenizer, ids, stop_strings)
    for token in generate(model, ids, max_tokens, stop=stop, **settings):
        if token in stop:
            break
        if piece := stream.add(token):
            yield piece
        if stream.ended:
            return
    if rest := stream.rest():
        yield rest


class TextStream:
    """Turns tokens into text as they come, and holds back what may yet change.

    `ended` is true after a stop string, of which nothing is given out.
    """

    def __init__(self, tokenizer: TextCoder, ids: Sequence[int], stop_strings: Sequence[str] = ()):
        if not all(stop_strings):
            raise InputError("generate_text: a stop string is empty; give at least one character")
        self.tokenizer, self.ids, self.stop_strings = tokenizer, list(ids), stop_strings
        self.start = len(tokenizer.decode(self.ids))
        self.text, self.shown, self.ended = "", 0, False

    def add(self, token: int) -> str:
        """The text that one more token made certain."""
        self.ids.append(token)
        self.text = self.tokenizer.decode(self.ids)[self.start :]
        if (end := _first_of(self.stop_strings, self.text, self.shown)) is not None:
            self.text, self.ended = self.text[:end], True
            return self.rest()
        complete = self.text.rstrip("\ufffd")  # the rest of a character may follow
        return self._show(len(complete) - _possible_beginning(self.stop_strings, complete))

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        return self._show(len(self.text))

    def _show(self, end: int) -> str:
        piece = self.text[self.shown : end]
        self.shown = max(self.shown, end)
        return piece


def _first_of(strings: Sequence[str], text: str, start: int) -> int | None:
    """Where the first of the strings begins, at `start` or after it."""
    return min((place for string in strings if (place := text.find(string, start)) >= 0), default=None)


def _possible_beginning(strings: Sequence[str], text: str) -> int:
    """The length of the longest end of the text that one of the strings begins with."""
    lengths = (n for string in strings for n in range(min(len(string) - 1, len(text)), 0, -1))
    return max((n for n in lengths if any(text.endswith(string[:n]) for string in strings)), default=0)


class _Draw:
    """Draws tokens with a stream of its own."""

    def __init__(self, sampling: Sampling, seed: int):
        if not 0 <= seed < 1 << 64:
            raise InputError(f"generate: seed is {seed}; give 0 or more, below 2**64")
        self.sampling, self.rng = sampling, np.random.Generator(np.random.Philox(key=seed))

    def __call__(self, logits: Array, seen: Sequence[int]) -> int:
        probabilities = self.sampling.probabilities(logits, seen)
        return int(self.rng.choice(len(probabilities), p=probabilities))


def _check_max_tokens(where: str, max_tokens: int) -> None:
    if max_tokens < 0:
        raise InputError(f"{where}: max_tokens is {max_tokens}; give 0 or more")


class Guess(NamedTuple):
    """A token for a gap, and how likely it is."""

    id: int
    probability: float


def fill_mask(model: Any, ids: Sequence[int] | Array, mask_id: int, top_k: int = 5, **given: Any) -> list[list[Guess]]:
    """For each mask token in `ids`, the `top_k` likeliest tokens, by a model with a head for hidden tokens.

    model: such as BertForMaskedLM or RobertaForMaskedLM; ids: (T,), with the tokens that the model expects around a
    text, such as [CLS] and [SEP]; given: other inputs of `model.features`, such as token_types (1, T).
    Raises: InputError where no token is hidden.
    """
    ids = np.asarray(ids)
    hidden = np.flatnonzero(ids == mask_id)
    if not len(hidden):
        raise InputError(f"fill_mask: none of the ids is the mask token, {mask_id}; put it where a word is wanted")
    with evaluating(model), no_grad():
        features = model.features(ids[None], **given)[0].take(hidden)
        logits = to_host(model.head(features, model.wte.weight).data)
    guesses = []
    for row in logits:
        probabilities = Sampling().probabilities(row)
        likeliest = np.argsort(-probabilities, kind="stable")[:top_k]
        guesses.append([Guess(int(i), float(probabilities[i])) for i in likeliest])
    return guesses
