"""Write a target for each source, such as a translation (BART).

The data are two files, line by line, or a .jsonl whose objects have two fields. Pairs of similar lengths form a batch
(data/pairs.py). The last pairs are for validation; a pair that is empty or too long is left out, and counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from minillm.autograd import Tensor
from minillm.beam_search import beam_search
from minillm.counted import counted
from minillm.data import PairBatches, pad_pairs, read_text, read_texts
from minillm.errors import InputError
from minillm.generate import generate_batch
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.corpus import saved_tokenizer, train_tokenizer
from minillm.training.tasks.families import named, special_ids, special_tokens, with_ids
from minillm.training.tasks.task import Task

SHOWN = 3  # pairs of the validation part in a preview


class SourceAndTarget(Task):
    """The loss and the model of tasks with a source and a target.

    A batch has `source` (B, S), padded, `source_lengths` (B,), and `target` (B, T), where -100 does not count.
    """

    models: ClassVar = {"bart": "Bart"}
    smoothing = 0.0

    @classmethod
    def shape(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """The configuration of the model, with the tokenizer's ids."""
        shape = super().shape(config, tokenizer)
        if config.init is not None:
            return shape
        ids = dict(bos_id="bos_token", padding_id="pad_token", eos_id="eos_token", decoder_start_id="eos_token")
        return with_ids(shape, tokenizer, config.architecture, **ids)

    def counts(self, batch: Batch) -> dict[str, float]:
        """The tokens of the targets."""
        return {"loss": float((batch["target"] != -100).sum())}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the cross-entropies, in nats, smoothed."""
        return {"loss": self._loss(model, batch, self.smoothing)}

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The sum of the cross-entropies, in nats, not smoothed."""
        return {"loss": (self._loss(model, batch, 0.0).item(), self.counts(batch)["loss"])}

    def _loss(self, model: Any, batch: Batch, smoothing: float) -> Tensor:
        source, target, lengths = batch["source"], batch["target"], batch["source_lengths"]
        return model.loss(source, target, lengths, label_smoothing=smoothing, reduction="sum")

    def tokens(self, batch: Batch) -> int:
        """The tokens of sources and targets, without padding."""
        return int(batch["source_lengths"].sum() + (batch["target"] != -100).sum())


@dataclass(frozen=True)
class PairsOptions:
    """Settings of a training with pairs of texts."""

    targets: str | None = None
    """File with the target of each line of `data`; without it, `data` is a .jsonl with both."""
    source_field: str = "source"
    """Which field of a .jsonl line holds the source."""
    target_field: str = "target"
    """Which field of a .jsonl line holds the target."""
    batch_tokens: int = 2048
    """Tokens of a batch, sources and targets with their padding, instead of a number of sequences."""
    smoothing: float = 0.1
    """Label smoothing: share of the target's probability that all tokens get; not in the validation loss."""

    def __post_init__(self):
        if self.batch_tokens < 2:
            raise InputError(f"train: batch_tokens is {self.batch_tokens}; give 2 or more")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"train: smoothing is {self.smoothing}; give 0 or more, and below 1")


class PairsTask(SourceAndTarget):
    """Sources and targets in batches of similar lengths; the loss is the mean over the tokens of the targets."""

    name = "pairs"
    Options = PairsOptions

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.smoothing = self.options.smoothing
        pairs = read_pairs(config)
        cut = len(pairs) - max(1, round(len(pairs) * config.validation_fraction))
        if cut < 1:
            raise InputError(
                f"train: {config.data} has {len(pairs)} pair; give two or more, for training and validation"
            )
        tokenizer = tokenizer or saved_tokenizer(config)
        if tokenizer is None:
            texts = [text for side in zip(*pairs[:cut], strict=True) for text in side]
            tokenizer = train_tokenizer(config, texts, special_tokens(config.architecture))
        self.tokenizer = named(tokenizer, config.architecture)
        self.pad, self.eos = special_ids(tokenizer, config.architecture, ["pad_token", "eos_token"])
        self.left_out = {"empty": 0, "too long": 0}
        self.train, self.validation = self._batches(pairs[:cut]), self._batches(pairs[cut:])

    def _batches(self, pairs: list[tuple[str, str]]) -> PairBatches:
        """The batches of the pairs that are neither empty nor too long."""
        kept = []
        for pair in pairs:
            source, target = ([*self.tokenizer.encode(text), self.eos] for text in pair)
            longest = max(len(source), len(target))
            if not all(text.strip() for text in pair):
                self.left_out["empty"] += 1
            elif longest > self.config.model.context or len(source) + len(target) > self.options.batch_tokens:
                self.left_out["too long"] += 1
            else:
                kept.append((source, target))
        if not kept:
            raise InputError(
                f"train: none of {len(pairs)} pairs of {self.config.data} is left ({self._told()}); give others, a "
                f"model with a longer context than {self.config.model.context}, or more --batch-tokens"
            )
        sources, targets = zip(*kept, strict=True)
        return PairBatches(sources, targets, self.options.batch_tokens, self.pad, self.config.seed)

    def _told(self) -> str:
        return ", ".join(f"{number} {what}" for what, number in self.left_out.items())

    def fingerprint(self) -> str:
        """The numbers of pairs, the tokenizer, and a checksum of the ids."""
        checksum = 0
        for batches in (self.train, self.validation):
            for rows in (batches.sources, batches.targets):
                checksum = zlib.crc32(np.concatenate(rows).astype(np.uint32).tobytes(), checksum)
        sizes = f"{len(self.train.sources)}+{len(self.validation.sources)}"
        return f"{sizes}-{self.tokenizer.fingerprint()}-{checksum:08x}"

    def summary(self) -> str:
        """The number of pairs, and the number left out."""
        return (
            f"{counted(len(self.train.sources), 'pair')} to train on, {len(self.validation.sources):,} for validation, "
            f"left out: {self._told()}; vocabulary {self.tokenizer.vocab_size:,}"
        )

    def batch(self, step: int, model: Any = None) -> Batch:
        """Pairs of similar lengths."""
        return self.train.batch(step)._asdict()

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """Batches of the validation part, spread evenly over the lengths of its pairs."""
        batches = list(self.validation.evaluation_batches())
        chosen = np.unique(np.linspace(0, len(batches) - 1, min(count, len(batches))).round().astype(int))
        return (batches[number]._asdict() for number in chosen)

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Some sources of the validation part, and what the model writes for them."""
        rows = [row.tolist() for row in self.validation.sources[:SHOWN]]
        written = translate(model, self.tokenizer, rows, self.config.sample_tokens or None)
        for row, text in zip(rows, written, strict=True):
            yield f"{self.tokenizer.decode(row[:-1])}\n", text


def read_pairs(config: Any) -> list[tuple[str, str]]:
    """The pairs of the settings' data.

    Raises: InputError for files that have another number of lines each, or a .jsonl without the fields.
    """
    options = config.task
    if options.targets is not None:
        for name in ("source_field", "target_field"):
            if getattr(options, name) != getattr(PairsOptions, name):
                raise InputError(
                    f"train: {name}={getattr(options, name)!r} names a field of a .jsonl, and --targets "
                    f"{options.targets} is a file beside {config.data}, line by line; leave one of the two out"
                )
    if options.targets is None:
        if not Path(config.data).name.removesuffix(".gz").endswith(".jsonl"):
            raise InputError(
                f"train: {config.data} alone holds no pairs; give the file of the targets with --targets, or a .jsonl "
                "with --source-field and --target-field"
            )
        sides = [list(read_texts(config.data, field)) for field in (options.source_field, options.target_field)]
    else:
        sides = [read_text(path).rstrip("\n").split("\n") for path in (config.data, options.targets)]
    if len(sides[0]) != len(sides[1]):
        raise InputError(
            f"train: there are {len(sides[0])} sources and {len(sides[1])} targets; give as many of both, none empty"
        )
    return list(zip(*sides, strict=True))


def translate(
    model: Any,
    tokenizer: Tokenizer,
    sources: Sequence[Sequence[int]],
    most: int | None = None,
    beams: int = 1,
    at_once: int = 64,
) -> list[str]:
    """The text that the model writes for each source; similar lengths are done together.

    sources: ids with the token that ends a text. most: tokens of an answer at most; None: twice as many as the source,
    and 10 more. beams: of a beam search; 1: the likeliest token each time.
    """
    config = model.config
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    texts = [""] * len(sources)
    for first in range(0, len(order), at_once):
        chosen = order[first : first + at_once]
        rows = [sources[i] for i in chosen]
        source, lengths, _ = pad_pairs(rows, rows, config.padding_id)
        view, start = model.conditioned(source, lengths), [[config.decoder_start_id]] * len(chosen)
        limit = min(config.context - 1, most or 2 * len(rows[-1]) + 10)
        if beams == 1:
            written = generate_batch(view, start, limit, stop=[config.eos_id], temperature=0)
        else:
            written = [found[0].ids for found in beam_search(view, start, limit, beams=beams, stop=[config.eos_id])]
        for i, ids in zip(chosen, written, strict=True):
            texts[i] = tokenizer.decode([token for token in ids if token != config.eos_id]).strip()
    return texts
