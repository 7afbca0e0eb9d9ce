"""Predict the next token of every token of a long text, as GPT-2 and Llama do.

With `boundaries`, each document of the text is computed as if it stood alone, although windows of the text hold the end
of one and the beginning of the next. A token that ends a text (`|`) stands behind each document:

    ids       t h e | c a t s | d o      of a window of T = 11, behind which a g comes
    starts    0 0 0 0 4 4 4 4 4 9 9      where the document of each position begins
    targets   h e | . a t s | . o g      what comes behind an end is another document's, so it is no target (-100)

Attention sees keys from `starts` on, and positions count from there (data/packing.py). A document that a window cuts
goes on in another one, without what came before, as all windows do.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minillm.autograd import Tensor
from minillm.counted import counted
from minillm.data import Tokens
from minillm.data.pairs import IGNORED
from minillm.errors import InputError
from minillm.generate import generate
from minillm.parallel.objective import Batch, NextTokens, next_token_batch
from minillm.tokenizers import Tokenizer
from minillm.training.corpus import Corpus, load_corpus, make_batches
from minillm.training.tasks.task import Task

LONGEST = 1024  # tokens of a sequence of a model that exists already, where nothing is said
DECODED = 1 << 20  # tokens of the validation text from which the bytes of a token are known, and of a block


@dataclass(frozen=True)
class CausalOptions:
    """Settings of a causal training."""

    length: int | None = None
    """Tokens of each sequence; by default as many as the model's context, or 1024 at most with --init."""
    boundaries: bool = False
    """Compute each document as if it stood alone: attention sees no other, and positions start again. The text is
    token shards with an end of text behind each document, as `minillm data shards` writes them."""

    def __post_init__(self):
        if self.length is not None and self.length < 1:
            raise InputError(f"train: length is {self.length}; give 1 or more")


class CausalTask(NextTokens, Task):
    """The text in windows, in the order of data/batches.py; the loss is the mean cross-entropy of the tokens."""

    name = "causal"
    Options = CausalOptions
    models: ClassVar = {"gpt2": "GPT2", "llama": "Llama", "gemma": "Gemma"}
    end: int | None = None  # the id that ends each document, where attention stays within one

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        context = config.model.context
        length = self.options.length or (context if config.init is None else min(context, LONGEST))
        if length > context:
            raise InputError(f"train: length={length} is more than the model's context of {context}; give at most that")
        self.corpus = load_corpus(config, tokenizer)
        self.tokenizer = self.corpus.tokenizer
        self.batches, self.validation = make_batches(self.corpus, config, length)
        if self.options.boundaries:
            self.next_tokens = False  # of one text in each row
            self.end = self._checked_end()

    def _checked_end(self) -> int:
        """The id that ends each document.

        Raises: InputError where the tokenizer has none, the training text has none, or a model is divided.
        """
        if max(self.config.tp, self.config.pp) > 1:
            raise InputError(
                f"train: --tp {self.config.tp} --pp {self.config.pp} divide a model that reads one text in each row; "
                "leave --boundaries out, or divide the batch alone (--dp, --zero)"
            )
        end = self.tokenizer.eos_id
        if end is None or not holds(self.corpus.train, end):
            raise InputError(
                f"train: --boundaries needs a token that ends each document, and {self.config.data} has none; make "
                "shards of documents with `minillm data shards`, or leave --boundaries out"
            )
        return end

    def fingerprint(self) -> str:
        """The numbers of tokens, the tokenizer, and a checksum of the tokens."""
        return self.corpus.fingerprint()

    def summary(self) -> str:
        """The number of tokens, and the loss of a uniform guess."""
        vocabulary = self.tokenizer.vocab_size
        return (
            f"{counted(len(self.corpus.train), 'training token')}, vocabulary {vocabulary:,} (a uniform guess has loss "
            f"{math.log(vocabulary):.2f})"
        )

    def batch(self, step: int, model: Any = None) -> Batch:
        """Windows of the training text."""
        return self._made(*self.batches.batch(step))

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """Windows spread evenly over the validation text."""
        return (self._made(*batch) for batch in self.validation.evaluation_batches(count))

    def _made(self, ids: np.ndarray, targets: np.ndarray) -> Batch:
        return next_token_batch(ids, targets) if self.end is None else bounded(ids, targets, self.end)

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the cross-entropies, in nats."""
        if self.next_tokens:
            return super().sums(model, batch)
        return {"loss": model.loss(batch["ids"], batch["targets"], "sum", batch["starts"])}

    @cached_property
    def bytes_per_token(self) -> float | None:
        """Bytes of the validation text for each of its tokens; tokens that stand for no text have none."""
        return bytes_per_token(self.tokenizer, np.asarray(self.corpus.validation[:DECODED]))

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """The start of the validation text, and how the model continues it."""
        yield sample(model, self.corpus, self.config, step)

    def next_steps(self, folder: str) -> list[str]:
        """The command that samples from the run."""
        return ["to sample from it:", f"  minillm sample {folder} --prompt {self._prompt()} --max-tokens 200"]

    def _prompt(self) -> str:
        """The start of a sentence, quoted for a shell; where the tokenizer cannot write it, that of the text."""
        try:
            self.tokenizer.encode("The ")
            return '"The "'
        except InputError:
            return shlex.quote(self.tokenizer.decode(np.asarray(self.corpus.train[:8])))


def bounded(ids: np.ndarray, targets: np.ndarray, end: int) -> Batch:
    """The batch of windows (B, T) with the starts of their documents, each of which ends with the id `end`."""
    ends = ids == end  # (B, T)
    places = np.arange(ids.shape[1])  # (T,)
    begins = np.zeros_like(ids)
    begins[:, 1:] = np.where(ends[:, :-1], places[1:], 0)
    starts = np.maximum.accumulate(begins, axis=1)  # (B, T)
    return {"ids": ids, "targets": np.where(ends, IGNORED, targets), "starts": starts}


def holds(tokens: Tokens | np.ndarray, id: int) -> bool:
    """True if the id occurs among the tokens, which are read block by block."""
    blocks = (np.asarray(tokens[first : first + DECODED]) for first in range(0, len(tokens), DECODED))
    return any((block == id).any() for block in blocks)


def bytes_per_token(tokenizer: Tokenizer, ids: np.ndarray) -> float | None:
    """Bytes of the text of these ids (N,) divided by N; special tokens count as ids, and have no bytes.

    With it a loss per token becomes one per byte, which models with different tokenizers share:
    bits per byte = nats per token / (ln 2 · bytes per token). None where there is no text.
    """
    text = ids[~np.isin(ids, list(tokenizer.special_tokens.values()))]
    size = len(tokenizer.decode(text).encode("utf-8", "surrogatepass"))
    return size / len(ids) if size else None


def sample(model: Any, corpus: Corpus, config: Any, step: int) -> tuple[str, str]:
    """Some validation text, and how the model continues it."""
    prompt = np.asarray(corpus.validation[:16]).tolist()
    ids = list(generate(model, prompt, config.sample_tokens, temperature=0.8, top_k=50, seed=config.seed + step))
    return corpus.tokenizer.decode(prompt), corpus.tokenizer.decode(ids)
