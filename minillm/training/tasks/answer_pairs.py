"""Pairs of a better and a worse answer, from which preference and reward learn: their data, batches and counts."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minillm.chat_templates import template_for
from minillm.counted import counted
from minillm.data.batches import shuffled
from minillm.data.instructions import held_out
from minillm.data.preferences import (
    PairExample,
    encode_preference,
    pad_examples,
    read_preferences,
    shortened_pairs,
)
from minillm.data.records import converted
from minillm.errors import InputError
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.sft import new_tokenizer
from minillm.training.tasks.task import Task

SHOWN = 3  # held-out prompts that a preview answers


@dataclass(frozen=True)
class AnswerPairsOptions:
    """Settings of a training on pairs of answers."""

    template: str | None = None
    """Chat template (chatml, llama3, alpaca, ...); by default the one of the tokenizer, or alpaca if it has none."""
    max_length: int | None = None
    """Longest prompt with an answer, in tokens; longer answers are cut there; by default the model's context."""

    def __post_init__(self):
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"train: max_length is {self.max_length}; give 2 or more tokens")


class AnswerPairs(Task):
    """The base of tasks whose examples are pairs; an array of a batch has a row for each pair.

    ids and targets (B, 2, T): the chosen and the rejected answer, each behind the prompt, with padding on the right;
    lengths (B, 2): the tokens of each.
    """

    samples: ClassVar[bool] = False
    models: ClassVar = {"gpt2": "GPT2", "llama": "Llama", "gemma": "Gemma"}

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        context = config.model.context
        self.max_length = self.options.max_length or context
        if self.max_length > context:
            raise InputError(
                f"train: max_length={self.max_length} is more than the model's context of {context}; give at most that"
            )
        records = read_preferences(config.data)
        out = held_out([pair.chosen for pair in records.items], config.validation_fraction)  # (N,)
        both = [one for pair in records.items for one in pair]
        self.tokenizer = tokenizer or new_tokenizer(config, both, np.repeat(out, 2))
        self.template = template_for(self.tokenizer, self.options.template)
        self.records, examples, kept = converted(
            records, lambda pair: encode_preference(pair, self.tokenizer, self.template)
        )
        numbers, self.pairs = shortened_pairs(examples, self.max_length)
        self.cut = sum(any(len(one.ids) >= self.max_length for one in pair) for pair in examples)
        self.without_answer = len(examples) - len(numbers)
        self.is_out = out[np.array(kept, int)[numbers]]  # of each pair that stays
        self.learned, self.out = np.flatnonzero(~self.is_out), np.flatnonzero(self.is_out)  # numbers of pairs
        self.shown = [self.records.items[numbers[number]].chosen for number in self.out[:SHOWN]]
        for part, of_part in (("trained on", self.learned), ("held out", self.out)):
            if not len(of_part):
                raise InputError(
                    f"train: {config.data} leaves no pair to be {part}: {self.left_out()}; give more or shorter "
                    "records, or a larger --max-length"
                )

    def fingerprint(self) -> str:
        """The numbers of pairs, the tokenizer, and a checksum of all ids and targets and of what is held out."""
        checksum = zlib.crc32(self.is_out.tobytes())
        for pair in self.pairs:
            for example in pair:
                checksum = zlib.crc32(np.stack(example).tobytes(), checksum)
        counts = f"{len(self.learned)}+{len(self.out)}"
        return f"{counts}-{self.tokenizer.fingerprint()}-{self.template.name}-{checksum:08x}"

    def summary(self) -> str:
        """The number of pairs, and what was cut or left out."""
        steps = -(-len(self.learned) // self.config.batch_size)
        return (
            f"{counted(len(self.learned), 'pair')} to learn from ({counted(steps, 'step')} an epoch), "
            f"{len(self.out):,} held out, template {self.template.name}; {self.left_out()}"
        )

    def left_out(self) -> str:
        """The numbers of records read, cut and left out, and the reasons."""
        text = f"{self.records.summary()}; {self.cut:,} cut to {self.max_length:,} tokens"
        lost = f", of which {self.without_answer:,} had no answer left and were dropped" if self.without_answer else ""
        return text + lost

    def batch(self, step: int, model: Any = None) -> Batch:
        """Pairs in a shuffled order of each epoch."""
        chosen = shuffled(len(self.learned), self.config.batch_size, self.config.seed, step)
        return self.made(self.learned[chosen])

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """The held-out pairs, as many as fit into so many batches."""
        size = self.config.batch_size
        numbers = self.out[: count * size]
        return (self.made(numbers[start : start + size]) for start in range(0, len(numbers), size))

    def made(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """The batch of the pairs with these numbers."""
        return padded([self.pairs[number] for number in numbers])

    def tokens(self, batch: Batch) -> int:
        """The number of tokens, without padding."""
        return int(batch["lengths"].sum())


def padded(pairs: Sequence[PairExample]) -> Batch:
    """ids and targets (B, 2, T) and lengths (B, 2) of B pairs."""
    ids, targets, lengths = pad_examples([example for pair in pairs for example in pair])  # (2B, T), (2B, T), (2B,)
    B, T = len(pairs), ids.shape[1]
    return {"ids": ids.reshape(B, 2, T), "targets": targets.reshape(B, 2, T), "lengths": lengths.reshape(B, 2)}
