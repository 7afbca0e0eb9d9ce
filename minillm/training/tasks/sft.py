"""Supervised fine-tuning: a model learns to write the answers of instructions and conversations.

The loss is the mean cross-entropy of the tokens of answers, with the token that ends each; prompts are read and not
learned. Records are held out before anything is packed, by a hash of what they ask (data/instructions.py), so that
nothing that validation asks was ever learned.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.chat_templates import ChatTemplate, template_for
from minillm.counted import counted
from minillm.data.batches import shuffled
from minillm.data.instructions import (
    Example,
    Instruction,
    encode_instruction,
    encode_prompt,
    held_out,
    read_instructions,
    rendered,
    shortened,
)
from minillm.data.packing import best_fit_decreasing, rows_of
from minillm.data.pairs import IGNORED
from minillm.data.records import Records, converted
from minillm.errors import InputError
from minillm.generate import end_tokens, generate_text
from minillm.parallel.objective import Batch, NextTokens
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer
from minillm.tokenizers.base import END_OF_TEXT
from minillm.training.tasks.task import Task

LONGEST = 1024  # tokens of a row, where nothing is said: a model's whole context may need more memory than there is
SHOWN = 3  # held-out instructions that a preview answers


@dataclass(frozen=True)
class SFTOptions:
    """Settings of supervised fine-tuning."""

    template: str | None = None
    """Chat template (chatml, llama3, alpaca, ...); by default the one of the tokenizer, or alpaca if it has none."""
    max_length: int | None = None
    """Longest example, and longest row, in tokens; a longer one is cut there; by default the context, 1024 at most."""
    packing: bool = True
    """Put several examples in a row, each computed as if it stood alone; otherwise each has a row, with padding."""

    def __post_init__(self):
        if self.max_length is not None and self.max_length < 2:
            raise InputError(f"train: max_length is {self.max_length}; give 2 or more tokens")


class SFTTask(NextTokens, Task):
    """Instructions in rows of at most `max_length` tokens."""

    name = "sft"
    Options = SFTOptions
    models: ClassVar = {"gpt2": "GPT2", "llama": "Llama", "gemma": "Gemma"}
    measured_first = True

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        context = config.model.context
        self.max_length = self.options.max_length or min(context, LONGEST)
        if self.max_length > context:
            raise InputError(
                f"train: max_length={self.max_length} is more than the model's context of {context}; give at most that"
            )
        self.next_tokens = not self.options.packing
        if self.options.packing and max(config.tp, config.pp) > 1:
            raise InputError(
                f"train: --tp {config.tp} --pp {config.pp} divide a model that reads one text in each row; give "
                "--no-packing too"
            )
        records = read_instructions(config.data)
        out = held_out(records.items, config.validation_fraction)  # (N,)
        self.tokenizer = tokenizer or new_tokenizer(config, records.items, out)
        self.template = template_for(self.tokenizer, self.options.template)
        if not all(one.raw for one in records.items):
            self.template.check_tokenizer(self.tokenizer)
        self.records, examples, kept = encoded(records, self.tokenizer, self.template)
        numbers, self.examples = shortened(examples, self.max_length)
        self.cut = sum(len(example.ids) > self.max_length for example in examples)
        self.without_answer = len(examples) - len(numbers)
        self.kept = np.array(numbers, int)  # the records of the examples that stay
        self.is_out = out[kept][self.kept]  # of each of these
        self.shown = [self.records.items[number] for number in self.kept[self.is_out][:SHOWN]]
        for part, count in (("trained on", (~self.is_out).sum()), ("held out", self.is_out.sum())):
            if not count:
                raise InputError(
                    f"train: {config.data} leaves no example to be {part}: {self.left_out()}; give more or shorter "
                    "records, or a larger --max-length"
                )
        self.rows = [self._rows(np.flatnonzero(self.is_out == side)) for side in (False, True)]

    def _rows(self, numbers: np.ndarray) -> list[list[int]]:
        """The examples with these numbers in rows."""
        if not self.options.packing:
            return [[number] for number in numbers.tolist()]
        lengths = [len(self.examples[number].ids) for number in numbers]
        return [[int(numbers[i]) for i in row] for row in best_fit_decreasing(lengths, self.max_length)]

    def fingerprint(self) -> str:
        """The numbers of examples, the tokenizer, and a checksum of all ids and targets and of what is held out."""
        checksum = zlib.crc32(self.is_out.tobytes())
        for example in self.examples:
            checksum = zlib.crc32(np.stack(example).tobytes(), checksum)
        counts = f"{(~self.is_out).sum()}+{self.is_out.sum()}"
        return f"{counts}-{self.tokenizer.fingerprint()}-{self.template.name}-{checksum:08x}"

    def summary(self) -> str:
        """The numbers of examples and of their rows, and what was cut or left out."""
        rows, steps = len(self.rows[0]), -(-len(self.rows[0]) // self.config.batch_size)
        learned = sum(int((self.examples[number].targets != IGNORED).sum()) for row in self.rows[0] for number in row)
        return (
            f"{counted((~self.is_out).sum(), 'example')} to learn in {counted(rows, 'row')} "
            f"({counted(steps, 'step')} an epoch; answers have {counted(learned, 'token')}), "
            f"{self.is_out.sum():,} held out, template {self.template.name}; {self.left_out()}"
        )

    def left_out(self) -> str:
        """The numbers of records read, cut and left out."""
        text = f"{self.records.summary()}; {self.cut:,} cut to {self.max_length:,} tokens"
        lost = f", of which {self.without_answer:,} had no answer left and were dropped" if self.without_answer else ""
        return text + lost

    def batch(self, step: int, model: Any = None) -> Batch:
        """Rows in a shuffled order of each epoch."""
        chosen = shuffled(len(self.rows[0]), self.config.batch_size, self.config.seed, step)
        return self._made([self.rows[0][number] for number in chosen])

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """The held-out rows, as many as fit into so many batches."""
        rows, size = self.rows[1][: count * self.config.batch_size], self.config.batch_size
        return (self._made(rows[start : start + size]) for start in range(0, len(rows), size))

    def _made(self, rows: Sequence[Sequence[int]]) -> Batch:
        end = self.tokenizer.eos_id
        batch = rows_of([[self.examples[number] for number in row] for row in rows], 0 if end is None else end)
        if not self.options.packing:
            del batch["starts"]  # padding behind an example changes nothing in it
        return batch

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the cross-entropies of the answers' tokens, in nats.

        The logits of positions where nothing is learned are not made: of long rows and a large vocabulary, they would
        be most of the memory.
        """
        if self.next_tokens:
            return super().sums(model, batch)
        targets = batch["targets"].reshape(-1)  # (B T,)
        (learned,) = np.nonzero(targets != IGNORED)  # (N,)
        features = model.features(batch["ids"], starts=batch["starts"])  # (B, T, C)
        logits = model.logits(features.reshape(len(targets), -1).index_select(0, learned))  # (N, V)
        return {"loss": ops.cross_entropy(logits, targets[learned], reduction="sum", overwrite=True)}

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Held-out instructions, and how the model answers them, with the likeliest tokens."""
        return answered(model, self.tokenizer, self.template, self.shown, self.config.sample_tokens)

    def next_steps(self, folder: str) -> list[str]:
        """The command that talks to the model."""
        return ["to talk to it:", f"  minillm chat {folder}"]


def encoded(
    records: Records[Instruction], tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[Records[Instruction], list[Example], np.ndarray]:
    """The records that fit the template, the examples made of them, and the numbers that they had among all.

    Raises: InputError where none fits.
    """
    found, examples, kept = converted(records, lambda one: encode_instruction(one, tokenizer, template))
    if not examples:
        raise InputError(f"train: no record fits the template {template.name!r}; {found.problems[-1]}")
    return found, examples, np.array(kept)


def answered(
    model: Any, tokenizer: Tokenizer, template: ChatTemplate, instructions: Sequence[Instruction], max_tokens: int
) -> Iterator[tuple[str, str]]:
    """The last question of each instruction, and the model's answer to it, with the likeliest tokens."""
    for instruction in instructions:
        stop = [*template.stop_ids(tokenizer), *end_tokens(model)]
        prompt = encode_prompt(instruction, tokenizer, template)
        strings = () if instruction.raw else template.stop_strings
        pieces = generate_text(model, tokenizer, prompt, max_tokens, stop=stop, stop_strings=strings, temperature=0)
        asked = [message.content for message in instruction.messages[:-1] if message.role in ("user", "input")]
        last = asked[-2:] if instruction.messages[-2].role == "input" else asked[-1:]
        yield "\n".join(last) + "\n", "".join(pieces)


def new_tokenizer(config: Any, instructions: Sequence[Instruction], is_out: np.ndarray) -> Tokenizer:
    """The tokenizer of a model that starts from nothing: a saved one, or one that is trained on what it will learn.

    The character tokenizer gets the characters of all records and of the template; both get a token that ends a text.
    """
    if config.tokenizer not in ("bpe", "char"):
        return Tokenizer.load(config.tokenizer)
    template = template_for(None, config.task.template)
    texts = [rendered(instruction, template) for instruction in instructions]
    special = (END_OF_TEXT, *template.special_tokens)
    if config.tokenizer == "char":
        return CharacterTokenizer.train("".join(texts) + "".join(template.stop_strings), special)
    learned = [text for text, out in zip(texts, is_out, strict=True) if not out]
    return BPETokenizer.train("\n\n".join(learned), config.model.vocab_size, special, progress=True)
