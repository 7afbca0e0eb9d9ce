"""The common part of tasks that train an encoder with a head: its body may be pretrained, and its head is new."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from minillm.data.frames import frame_of, padded
from minillm.data.similar import similar_batch, sorted_batches
from minillm.errors import InputError
from minillm.evaluation.heads import inputs_of as inputs_of
from minillm.evaluation.heads import padding_of
from minillm.models.heads import take_body
from minillm.parallel.objective import Batch
from minillm.pretrained import keep
from minillm.tokenizers import BPETokenizer, Tokenizer, UnigramTokenizer, WordPieceTokenizer
from minillm.training.tasks.families import named, scale_matrices, special_tokens
from minillm.training.tasks.task import Task, left_out_of


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """Settings that all heads share."""

    new_head: bool = False
    """Begin with a new head even if the model has one for these classes."""
    vocab_size: int = 8000
    """Tokens of the vocabulary that is learned from the training texts, if the model is a preset."""
    dropout: float | None = None
    """Dropout probability in the encoder and before the head; by default the model's own."""

    def __post_init__(self):
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"train: dropout is {self.dropout}; give a probability of at least 0 and below 1")
        if self.vocab_size < 300:
            raise InputError(f"train: vocab_size is {self.vocab_size}; give 300 or more")


class HeadTask(Task):
    """A model with a head that reads framed texts (data/frames.py)."""

    head: ClassVar[str]
    tokenizer: Tokenizer
    lengths: list[np.ndarray]  # tokens of each example, of those to learn and of those held out

    def prepare(self, tokenizer: Tokenizer | None, texts: Iterable[str]) -> None:
        """Take the tokenizer, or make one from the training texts, and the frame of the model's family."""
        family = self.config.architecture
        self.tokenizer = tokenizer or new_tokenizer(family, texts, self.options.vocab_size)
        self.frame = frame_of(self.tokenizer, family)
        self.padding_id = padding_of(self.shape(self.config, self.tokenizer), self.tokenizer)

    def start_from(self, model: Any, opened: Any) -> str:  # type: ignore[override]
        """Take the body of an opened model, and its head too if it has the same classes."""
        other = opened.model
        same = type(other) is type(model) and other.config.label_names == model.config.label_names
        if same and other.config.labels == model.config.labels and not self.options.new_head:
            model.load_state_dict(other.state_dict())
            keep(model, opened.saved_with)
        else:
            take_body(model, other)
        return left_out_of(opened, model)

    @classmethod
    def shape(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """The configuration of the model; of a new one, with the vocabulary and the special tokens of its tokenizer."""
        if config.init is not None:
            return super().shape(config, tokenizer)
        ids = {"padding_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
        ids["decoder_start_id"] = tokenizer.eos_id
        known = {field.name for field in dataclasses.fields(config.model)}
        given = {name: i for name, i in ids.items() if name in known and i is not None}
        return dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size, **given)

    @classmethod
    def make_model(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """A new model of these settings; if it starts from nothing, with matrices that a narrow one learns from."""
        model = super().make_model(config, tokenizer)
        return scale_matrices(model) if config.init is None else model

    def batch(self, step: int, model: Any = None) -> Batch:
        """Examples of similar lengths, in an order drawn for each epoch."""
        return self.made(0, similar_batch(self.lengths[0], self.config.batch_size, self.config.seed, step))

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """The held-out examples, sorted by length."""
        chosen = sorted_batches(self.lengths[1], self.config.batch_size, count)
        return (self.made(1, numbers) for numbers in chosen)

    def made(self, part: int, numbers: np.ndarray) -> Batch:
        """The batch of the examples with these numbers; part 0 has those to learn, 1 those held out."""
        raise NotImplementedError

    def next_steps(self, folder: str) -> list[str]:
        """The command that writes it for transformers."""
        return [
            "to write it for transformers:",
            f"  minillm convert {folder} my-{self.config.architecture}-{self.name}",
        ]

    def padded(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
        """The arrays of some framed texts."""
        return padded(rows, self.frame, self.padding_id)

    def tokens(self, batch: Batch) -> int:
        """The number of real tokens."""
        return int(batch["lengths"].sum())


def models_of(head: str, **others: str) -> dict[str, str]:
    """The classes with a head in the file of each family; `others` are those with another name."""
    kinds = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert", "xlnet": "XLNet", "bart": "Bart"}
    return {family: f"{kind}{head}" for family, kind in kinds.items()} | others


def new_tokenizer(family: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of the kind that a family uses, learned from texts."""
    kinds: dict[str, Any] = {"bert": WordPieceTokenizer, "distilbert": WordPieceTokenizer, "xlnet": UnigramTokenizer}
    kind = kinds.get(family, BPETokenizer)
    return named(kind.train(list(texts), vocab_size, special_tokens=special_tokens(family)), family)


def checksum_of(rows: Iterable[Sequence[int]]) -> str:
    """A short text that differs for other rows of ids."""
    found = 0
    for row in rows:
        found = zlib.crc32(np.asarray([len(row), *row], np.int64).tobytes(), found)
    return f"{found:08x}"
