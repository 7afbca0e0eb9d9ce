"""Log-likelihoods: how probable a model finds a continuation, or a whole document.

For ids x_1 ... x_n after a context c, log p = sum_i log p(x_i | c, x_1 ... x_(i-1)), in nats. A model is given
*windows*: inputs, and as targets the ids that its last outputs predict. With a model whose context is 4:

    the continuation x y of a b c d e:  inputs c d e x -> targets x y; the context is cut on the left
    the document p q r s t u:           inputs BOS p q r -> targets p q r s, then q r s t -> t u; each id is scored once

The rules are those of lm-evaluation-harness:

- a continuation is **encoded together with its context**, and cut where the context alone would end, so that the ids
  are those of the text; white space at the end of the context is moved to the continuation, where most tokenizers join
  it to a word. (Training on instructions does the opposite: it encodes prompt and answer apart, since that is what
  generation feeds. A measure asks for the probability of a text.)
- the special tokens that a tokenizer puts before every text, such as <s>, come before the context;
- an empty context is replaced by the prefix: the token that begins a text, or else the one that ends it;
- the first id of a document is predicted from that prefix, which itself is never scored. If a tokenizer has no such
  token, the first id is given the probability 1 / V, so that all ids count.

Windows are sorted by length, so that a batch has little padding, which is on the right, where no token sees it. A
window whose inputs begin those of another is not computed: the choices of one token of a question cost one row. Only
outputs that predict a target are multiplied by the output layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minillm import ops
from minillm.autograd import no_grad
from minillm.device import to_host
from minillm.errors import InputError
from minillm.evaluation.left_to_right import left_to_right
from minillm.grad_mode import quiet
from minillm.models.bart import Bart
from minillm.nn import Decoder
from minillm.tokenizers import Tokenizer

BATCH_TOKENS = 2048  # inputs that are computed together
LOGITS = 1 << 24  # logits that are in memory together
Progress = Callable[[int, int], None]  # called with how many are done, and how many there are


class Window(NamedTuple):
    """Ids to give to a model, and those that its last len(targets) outputs are to predict."""

    inputs: list[int]
    targets: list[int]


class Likelihood(NamedTuple):
    """The likelihood of a continuation."""

    log_probability: float  # nats
    is_greedy: bool  # True if each of its ids is the likeliest at its place
    ids: int  # that it has
    cut: int = 0  # ids of the context that were left out, since the model's context is too short


class Score(NamedTuple):
    """The likelihood of the targets of a window."""

    log_probability: float  # nats, the sum
    is_greedy: bool  # True if each target is the likeliest id at its place
    log_probabilities: np.ndarray  # nats of each target


# Texts to windows


def prefix_id(model: Any, tokenizer: Tokenizer) -> int | None:
    """The id that stands before a text without context: that which begins a text, or else ends one; None for neither.

    The tokenizer is asked first, then the values in the model's files.
    """
    saved = vars(model).get("saved_with")
    named = saved.config if saved else {}
    before = tokenizer.before_text()[-1:]
    ends = [*getattr(model, "eos_ids", ())][:1]
    for found in (tokenizer.bos_id, *before, tokenizer.eos_id, named.get("bos_token_id"), *ends):
        if isinstance(found, int):
            return found
    return None


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str, prefix: int | None
) -> tuple[list[int], list[int]]:
    """The ids of a context, which are at least one, and those of its continuation.

    Raises: InputError for a continuation that has no ids of its own, since its text is empty or a token joins it to the
        context; and for an empty context where there is no prefix.
    Source: `_encode_pair` and `loglikelihood` of lm-evaluation-harness (api/model.py).
    """
    stripped = context.rstrip()
    rest = context[len(stripped) :] + continuation
    if stripped:
        alone = tokenizer.encode(stripped)
        before, after = tokenizer.before_text() + alone, tokenizer.encode(stripped + rest)[len(alone) :]
    elif prefix is None:
        raise InputError(
            "log_likelihoods: the context is empty, and the tokenizer has no token that begins or ends a text; "
            f"give a context before {continuation!r:.60}"
        )
    else:
        after = tokenizer.encode(rest)
        before, after = (after[:1], after[1:]) if after[:1] == [prefix] else ([prefix], after)
    if not after:
        why = "joins the last token of the context" if continuation else "is empty"
        raise InputError(
            f"log_likelihoods: the continuation {continuation!r:.60} of {context[-30:]!r} {why}, so it has no ids to "
            "score; give a longer one, or move text from the context to it"
        )
    return before, after


def pair_window(before: list[int], after: list[int], context: int) -> Window:
    """The window that scores `after`, with as much of `before` as the model's context holds: its end.

    Raises: InputError for a continuation longer than the context.
    """
    if len(after) > context:
        raise InputError(
            f"log_likelihoods: a continuation has {len(after)} ids, but the model's context is {context}; "
            "shorten it, or score it as a document (perplexity)"
        )
    return Window((before + after)[-context - 1 : -1], after)


def rolling_windows(ids: Sequence[int], prefix: int, window: int, stride: int | None = None) -> Iterator[Window]:
    """Yield windows of at most `window` inputs that together score each of the ids once.

    The first window scores as many as it holds, each later one the next `stride` ids, or all that are left; so each of
    these is predicted from at least window - stride + 1 ids before it. The default stride is `window`.

    Raises: InputError for a window below 1, or a stride that is not in 1 ... window.
    Source: `get_rolling_token_windows` of lm-evaluation-harness, with context_len = window - stride + 1.
    """
    stride = window if stride is None else stride
    if window < 1 or not 1 <= stride <= window:
        raise InputError(f"rolling_windows: window={window} and stride={stride}; give 1 <= stride <= window")
    ids = list(ids)
    if first := ids[:window]:
        yield Window([prefix, *first[:-1]], first)
    for start in range(window, len(ids), stride):
        end = min(start + stride, len(ids))
        yield Window(ids[end - window - 1 : end - 1], ids[start:end])


# Windows to log-probabilities


def window_scores(
    model: Decoder, windows: Sequence[Window], batch_tokens: int = BATCH_TOKENS, progress: Progress | None = None
) -> list[Score]:
    """The score of each window.

    Units: nats, added in float64.
    Raises: InputError for a result that is not a number, from weights that are not.
    """
    results: dict[int, Score] = {}
    groups = _by_inputs(model, windows)
    done = 0
    with no_grad(), quiet():
        for batch in _batches(model, list(groups), batch_tokens):
            members = [(row, number) for row, inputs in enumerate(batch) for number in groups[inputs]]
            for (_, number), result in zip(members, _batch_scores(model, batch, members, windows), strict=True):
                if not math.isfinite(result.log_probability):
                    raise InputError(
                        f"log_likelihoods: the log-probability of text {number} is {result.log_probability}; look at "
                        "the model's weights, which a training that diverged or a damaged file leaves so"
                    )
                results[number] = result
            done += len(members)
            if progress is not None:
                progress(done, len(windows))
    return [results[number] for number in range(len(windows))]


def _by_inputs(model: Decoder, windows: Sequence[Window]) -> dict[tuple[int, ...], list[int]]:
    """The inputs to compute, longest first, each with the numbers of the windows that begin with them or equal them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    last: tuple[int, ...] | None = None
    order = sorted(range(len(windows)), key=lambda number: windows[number].inputs, reverse=True)
    for number in order:  # inputs that begin others come right after these
        inputs = tuple(windows[number].inputs)
        begins = last is not None and last[: len(inputs)] == inputs
        if last is None or not (begins and _equal_at(model, len(inputs), len(last))):
            last = inputs
        groups.setdefault(last, []).append(number)
    return dict(sorted(groups.items(), key=lambda group: len(group[0]), reverse=True))


def _batches(model: Decoder, inputs: list[tuple[int, ...]], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield inputs, longest first, in batches of at most `batch_tokens` with padding, or one row."""
    batch: list[tuple[int, ...]] = []
    for one in inputs:
        full = batch and (len(batch) + 1) * len(batch[0]) > batch_tokens
        if full or (batch and not _equal_at(model, len(one), len(batch[0]))):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch


def _equal_at(model: Decoder, short: int, long: int) -> bool:
    """True if the first `short` positions are computed alike in a longer row (not if angles depend on its length)."""
    return short == long or model.keeps_cache(short, long)


def _batch_scores(
    model: Decoder, batch: list[tuple[int, ...]], members: list[tuple[int, int]], windows: Sequence[Window]
) -> list[Score]:
    """The scores of the windows in one batch; `members` are the row and the number of each window."""
    length = len(batch[0])
    ids = np.array([[*row, *[0] * (length - len(row))] for row in batch])  # (B, T)
    places = [
        row * length + len(windows[number].inputs) - len(windows[number].targets) + i
        for row, number in members
        for i in range(len(windows[number].targets))
    ]
    targets = np.array([i for _, number in members for i in windows[number].targets])  # (N,)
    features = model.features(ids)  # (B, T, C)
    features = features.reshape(-1, features.shape[-1]).index_select(0, np.array(places))  # (N, C)
    scores, greedy = np.empty(len(targets)), np.empty(len(targets), bool)
    step = max(1, LOGITS // model.config.vocab_size)
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        logits = model.logits(features[part])  # (n, V)
        likeliest = to_host(logits.data.argmax(axis=-1))
        greedy[part] = likeliest == targets[part]
        scores[part] = -to_host(ops.cross_entropy(logits, targets[part], reduction="none", dim=-1).data)
    ends = np.cumsum([len(windows[number].targets) for _, number in members])[:-1]
    return [
        Score(float(nats.sum()), bool(alike.all()), nats)
        for nats, alike in zip(np.split(scores, ends), np.split(greedy, ends), strict=True)
    ]


# The public functions


def log_likelihoods(
    model: Any,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[Likelihood]:
    """The log-probability of each continuation after its context: log p(continuation | context).

    Args:
        pairs: the texts of contexts and continuations.
        progress: called with how many are done, and how many there are.

    An encoder-decoder reads the context as its source, and gives the continuation, encoded apart, as the beginning of
    its target.

    Units: nats.
    Raises: InputError for a continuation without ids of its own, or longer than the model's context.
    Source: `loglikelihood` of lm-evaluation-harness.
    """
    if isinstance(model, Bart):
        return _of_targets(model, tokenizer, pairs, batch_tokens, progress)
    prefix, model = prefix_id(model, tokenizer), left_to_right("log_likelihoods", model)
    encoded = [encode_pair(tokenizer, *pair, prefix) for pair in pairs]
    context = model.config.context
    windows = [pair_window(before, after, context) for before, after in encoded]
    scores = window_scores(model, windows, batch_tokens, progress)
    return [
        Likelihood(*score[:2], len(after), max(0, len(before) + len(after) - context - 1))
        for score, (before, after) in zip(scores, encoded, strict=True)
    ]


def _of_targets(
    model: Bart, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], batch_tokens: int, progress: Progress | None
) -> list[Likelihood]:
    """The log-probability of each continuation as the beginning of a target, with its context as the source."""
    context = model.config.context
    found: dict[int, Likelihood] = {}
    by_context: dict[str, list[int]] = {}
    for number, (source, _) in enumerate(pairs):
        by_context.setdefault(source, []).append(number)
    for source, numbers in by_context.items():
        ids = tokenizer.build_inputs_with_special_tokens(tokenizer.encode(source))
        if not ids:
            raise InputError("log_likelihoods: a source is empty; give at least one character of text")
        targets = [tokenizer.encode(pairs[number][1]) for number in numbers]
        if not all(targets):
            raise InputError(
                f"log_likelihoods: a continuation of {source[-30:]!r} has no ids to score; give a longer one"
            )
        windows = [pair_window([model.config.decoder_start_id], target, context) for target in targets]
        with no_grad(), quiet():
            conditioned = model.conditioned(np.array([ids[-context:]]))
        for number, score, target in zip(
            numbers, window_scores(conditioned, windows, batch_tokens), targets, strict=True
        ):
            found[number] = Likelihood(*score[:2], len(target), max(0, len(ids) - context))
        if progress is not None:
            progress(len(found), len(pairs))
    return [found[number] for number in range(len(pairs))]


def document_likelihoods(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    window: int | None = None,
    stride: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """The likelihood of each document: the log-probabilities of all its ids, each scored once.

    Args:
        window: inputs of a window; by default the model's context.
        stride: ids that each window after the first scores, by default `window`; fewer give each more context, and
            take longer.
        progress: called with how many windows are done, and how many there are.

    Shapes: one array (ids,) for each document.
    Units: nats.
    Raises: InputError for a document without ids, or a window beyond the model's context.
    Source: `loglikelihood_rolling` of lm-evaluation-harness, which lets a tokenizer that puts <s> before a text score
        this <s>, too; here the special tokens before a text are given, and never scored.
    """
    prefix, model = prefix_id(model, tokenizer), left_to_right("perplexity", model)
    window = model.config.context if window is None else window
    if not 1 <= window <= model.config.context:
        raise InputError(f"perplexity: window={window}; give 1 to {model.config.context}, the model's context")
    windows: list[Window] = []
    spans: list[slice] = []  # of each document: its windows
    for number, document in enumerate(documents):
        ids = tokenizer.encode(document)
        if not ids:
            raise InputError(f"perplexity: document {number} ({document!r:.40}) has no ids; leave it out")
        first = len(windows)
        start, rest = (ids[0], ids[1:]) if prefix is None else (prefix, ids)
        windows += rolling_windows(rest, start, window, stride)
        spans.append(slice(first, len(windows)))
    scores = window_scores(model, windows, batch_tokens, progress)
    first_id = np.full(int(prefix is None), -math.log(model.config.vocab_size))  # none where it is predicted
    return [np.concatenate([first_id, *(score.log_probabilities for score in scores[span])]) for span in spans]
