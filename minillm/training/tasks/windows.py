"""Base of the tasks that read a long text in windows, and hide a part of each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from minillm import random
from minillm.counted import counted
from minillm.errors import InputError
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.corpus import load_corpus, make_batches
from minillm.training.tasks.families import EVALUATIONS, STEPS, named, special_tokens, stream
from minillm.training.tasks.task import Task


class WindowTask(Task):
    """A text in windows of `length` tokens, in the order of data/batches.py; a subclass says what is hidden of them.

    room: how many tokens of the text a window has, beside the special tokens around it.
    """

    room: int
    special: set[int]  # ids that are no text

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.room = self.check_length() - self.around()
        if self.room < 1:
            raise InputError(f"train: a length of {self.room + self.around()} has no room for text; give a larger one")
        self.corpus = load_corpus(config, tokenizer, special_tokens(config.architecture))
        self.tokenizer = self.corpus.tokenizer if config.init else named(self.corpus.tokenizer, config.architecture)
        self.special = set(self.tokenizer.special_tokens.values())
        self.batches, self.validation = make_batches(self.corpus, config, self.room)

    def around(self) -> int:
        """The number of special tokens around the text of a window."""
        return 2

    def check_length(self) -> int:
        """The length of a window.

        Raises: InputError for one that the model has no room for.
        """
        context = getattr(self.config.model, "context", None)
        length: int = self.options.length or context or 0
        if context is not None and length > context:
            raise InputError(f"train: length={length} is more than the model's context of {context}; give at most that")
        return length

    def fingerprint(self) -> str:
        """The numbers of tokens, the tokenizer, and a checksum of the tokens."""
        return self.corpus.fingerprint()

    def summary(self) -> str:
        """The number of tokens, and the loss of a model that knows how frequent each is, and nothing else."""
        vocabulary = self.tokenizer.vocab_size
        return (
            f"{counted(len(self.corpus.train), 'training token')}, vocabulary {vocabulary:,} (a uniform guess has loss "
            f"{math.log(vocabulary):.2f}, one by frequency {entropy(np.asarray(self.corpus.validation)):.2f})"
        )

    def batch(self, step: int, model: Any = None) -> Batch:
        """Windows of the training text, in which something is hidden."""
        return self.hide(self.batches.batch(step)[0], stream(self.config.seed, STEPS, step))

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """Windows spread evenly over the validation text, in which the same is hidden at every call."""
        for number, (windows, _) in enumerate(self.validation.evaluation_batches(count)):
            yield self.hide(windows, stream(self.config.seed, EVALUATIONS, number))

    def hide(self, windows: np.ndarray, generator: random.Generator) -> Batch:
        """The batch of some windows (B, room), by the random numbers of this stream."""
        raise NotImplementedError


def entropy(tokens: np.ndarray) -> float:
    """The entropy of the frequencies of tokens, in nats."""
    shares = np.bincount(tokens) / len(tokens)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
