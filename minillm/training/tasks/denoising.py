"""Restore a corrupted text: spans are hidden and sentences change places (BART, data/denoising.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minillm import random
from minillm.data import denoising_pair, pad_pairs
from minillm.errors import InputError
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.families import special_ids
from minillm.training.tasks.pairs import SourceAndTarget, translate
from minillm.training.tasks.windows import WindowTask


@dataclass(frozen=True)
class DenoisingOptions:
    """Settings of a training to restore texts."""

    length: int | None = None
    """Tokens of each text, the one that ends it included; by default as many as the model's context."""
    hidden_share: float = 0.3
    """Share of the tokens that are hidden."""
    mean_span: float = 3.0
    """Mean length of a hidden span, in tokens; 0.5 or more."""

    def __post_init__(self):
        if self.length is not None and self.length < 2:
            raise InputError(f"train: length is {self.length}; give 2 or more")
        if not 0 < self.hidden_share <= 1 or not self.mean_span >= 0.5:
            raise InputError(
                f"train: hidden_share is {self.hidden_share} and mean_span {self.mean_span}; give a share above 0, 1 "
                "at most, and 0.5 or more"
            )


class DenoisingTask(SourceAndTarget, WindowTask):
    """Windows of a text as targets, and what is left of them as sources; the loss is the mean over the targets."""

    name = "denoising"
    Options = DenoisingOptions

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.pad, self.eos, self.mask = special_ids(
            self.tokenizer, config.architecture, ["pad_token", "eos_token", "mask_token"]
        )
        self.sentence_ends = sentence_ends(self.tokenizer)

    def around(self) -> int:
        """The token that ends a text, and room for a mask where nothing is missing: a source can be the longer one."""
        return 2

    def hide(self, windows: np.ndarray, generator: random.Generator) -> Batch:
        """Windows as targets, and their corrupted texts as sources."""
        options, room = self.options, self.room
        pairs = [
            denoising_pair(
                window,
                self.mask,
                self.sentence_ends,
                probability=options.hidden_share,
                mean_length=options.mean_span,
                generator=generator,
            )
            for window in windows
        ]
        sources = [[*source[: room + 1].tolist(), self.eos] for source, _ in pairs]
        targets = [[*target.tolist(), self.eos] for _, target in pairs]
        return pad_pairs(sources, targets, self.pad)._asdict()

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """A corrupted text of the validation part, and what the model writes."""
        row = self.first_row()
        source = row["source"][0, : int(row["source_lengths"][0])].tolist()
        shown = "".join("[___]" if i == self.mask else self.tokenizer.decode([i]) for i in source[:-1])
        [written] = translate(model, self.tokenizer, [source], self.config.sample_tokens or None)
        yield f"{shown}\n", written


def sentence_ends(tokenizer: Tokenizer) -> list[int]:
    """The ids of tokens that end with a full stop, an exclamation mark, a question mark, or the end of a line."""
    special = set(tokenizer.special_tokens.values())
    return [i for i in range(tokenizer.vocab_size) if i not in special and tokenizer.decode([i]).endswith((*".!?\n",))]
