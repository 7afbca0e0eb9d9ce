"""Predict hidden tokens (BERT, RoBERTa), and for BERT also if one text follows the other.

RoBERTa reads windows of the text between <s> and </s>. BERT, with next_sentence, reads pairs of texts
(data/next_sentence.py): documents are paragraphs that together have 256 tokens or more, sentences end at a line's end
or after `.`, `!` or `?`. An epoch passes once over all documents. Its pairs come in a random order, in as many batches
as those of the first epoch fill; pairs of a later epoch that are left over have no batch, and where there are too few,
the first ones come again.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minillm import ops, random
from minillm.autograd import Tensor
from minillm.counted import counted
from minillm.data import mask_tokens, read_text, sentence_pairs, split_text
from minillm.data.next_sentence import SentencePair
from minillm.device import to_host
from minillm.errors import InputError
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.corpus import saved_tokenizer, train_tokenizer
from minillm.training.tasks.families import (
    EVALUATIONS,
    STEPS,
    filled,
    named,
    right,
    scale_matrices,
    special_ids,
    special_tokens,
    stream,
    with_ids,
)
from minillm.training.tasks.task import Task
from minillm.training.tasks.windows import WindowTask, entropy

DOCUMENT = 256  # tokens from which on paragraphs are a document
ENDS = "cls_token", "sep_token"
ROLES = {"bert": ENDS, "distilbert": ENDS, "roberta": ("bos_token", "eos_token")}  # what is around a text
Pairs = list[SentencePair]


@dataclass(frozen=True)
class MaskedOptions:
    """Settings of a training with hidden tokens."""

    length: int | None = None
    """Tokens of each sequence, special ones included; by default as many as the model's context."""
    hidden_share: float = 0.15
    """Share of the tokens that are hidden."""
    whole_words: bool = True
    """Hide all tokens of a word together, where the tokenizer marks those that continue a word (WordPiece)."""
    next_sentence: bool = True
    """BERT also learns if the second of two texts follows the first; other models do not."""

    def __post_init__(self):
        if self.length is not None and self.length < 5:
            raise InputError(f"train: length is {self.length}; give 5 or more")
        if not 0 < self.hidden_share < 1:
            raise InputError(f"train: hidden_share is {self.hidden_share}; give a share above 0 and below 1")


class MaskedTask(WindowTask):
    """The loss is the mean over the hidden tokens, plus that over the pairs of texts."""

    name = "masked"
    Options = MaskedOptions
    models: ClassVar = {
        "bert": "BertForPreTraining",
        "roberta": "RobertaForMaskedLM",
        "distilbert": "DistilBertForMaskedLM",
    }

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        self.in_pairs = config.architecture == "bert" and config.task.next_sentence
        if self.in_pairs:
            Task.__init__(self, config, tokenizer)
            self._read_documents(tokenizer)
        else:
            super().__init__(config, tokenizer)
        self.first, self.last, self.mask = self._ids("mask_token")
        self.special = set(self.tokenizer.special_tokens.values())
        self.continues = continuations(self.tokenizer) if self.options.whole_words else None
        self._drawn: dict[int, Pairs] = {}
        if self.in_pairs:
            pairs = [len(self._pairs(part, 0)) for part in (True, False)]
            self.batches_per_epoch, self.validation_batches = (max(1, n // config.batch_size) for n in pairs)

    def _ids(self, *more: str) -> list[int]:
        architecture = self.config.architecture
        return special_ids(self.tokenizer, architecture, (*ROLES[architecture], *more))

    def _read_documents(self, tokenizer: Tokenizer | None) -> None:
        """Read the text as documents of sentences."""
        config = self.config
        texts = split_text(read_text(config.data, config.field), config.validation_fraction)
        tokenizer = tokenizer or saved_tokenizer(config)
        tokenizer = tokenizer or train_tokenizer(config, texts[0], special_tokens(config.architecture))
        self.tokenizer = named(tokenizer, config.architecture)
        self.length = self.check_length()
        self.documents = [documents_of(text, tokenizer) for text in texts]
        for part, documents in zip(("training", "validation"), self.documents, strict=True):
            if len(documents) < 2:
                raise InputError(
                    f"train: the {part} text is {len(documents)} document of {DOCUMENT} tokens or more, but a text "
                    "from another one must be drawn; give more text, or --no-next-sentence"
                )
        self.tokens_of = [np.concatenate([np.concatenate(d) for d in documents]) for documents in self.documents]

    def fingerprint(self) -> str:
        """The numbers of tokens, the tokenizer, and a checksum of the tokens."""
        if not self.in_pairs:
            return super().fingerprint()
        checksum = 0
        for tokens in self.tokens_of:
            checksum = zlib.crc32(np.asarray(tokens, np.uint32).tobytes(), checksum)
        sizes = "+".join(str(len(tokens)) for tokens in self.tokens_of)
        return f"{sizes}-{self.tokenizer.fingerprint()}-{checksum:08x}"

    def summary(self) -> str:
        """The size of the data, and the loss of a model that knows how frequent each token is, and nothing else."""
        if not self.in_pairs:
            return super().summary()
        return (
            f"{counted(len(self.tokens_of[0]), 'training token')} in {len(self.documents[0]):,} documents, vocabulary "
            f"{self.tokenizer.vocab_size:,} (a guess by frequency has loss {entropy(self.tokens_of[1]):.2f}, and 0.69 "
            "for two texts)"
        )

    @classmethod
    def shape(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """The configuration of the model, with the tokenizer's ids."""
        shape = super().shape(config, tokenizer)
        return shape if config.init else with_ids(shape, tokenizer, config.architecture, padding_id="pad_token")

    @classmethod
    def make_model(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """A new model of these settings."""
        return scale_matrices(super().make_model(config, tokenizer))

    @classmethod
    def model_class(cls, config: Any) -> Any:
        """The class of the model of these settings."""
        if config.architecture == "bert" and not config.task.next_sentence:
            from minillm.models.bert import BertForMaskedLM

            return BertForMaskedLM
        return super().model_class(config)

    # --- batches -----------------------------------------------------------------------------------------------------

    def batch(self, step: int, model: Any = None) -> Batch:
        """Windows or pairs of texts, in which tokens are hidden."""
        if not self.in_pairs:
            return super().batch(step)
        epoch, place = divmod(step, self.batches_per_epoch)
        return self._of_pairs(self._pairs(True, epoch), place, stream(self.config.seed, STEPS, step))

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """Windows or pairs of texts of the validation part, in which the same is hidden at every call."""
        if not self.in_pairs:
            yield from super().evaluation_batches(count)
            return
        pairs = self._pairs(False, 0)
        for number in range(min(count, self.validation_batches)):
            yield self._of_pairs(pairs, number, stream(self.config.seed, EVALUATIONS, number))

    def _pairs(self, training: bool, epoch: int) -> Pairs:
        """The pairs of an epoch, in a random order."""
        key = epoch if training else -1
        if key not in self._drawn:
            generator = stream(self.config.seed, (STEPS if training else EVALUATIONS) + (1 << 60), epoch)
            first, last = self._ids()
            pairs = list(sentence_pairs(self.documents[not training], self.length, first, last, generator=generator))
            order = generator.numpy().permutation(len(pairs))
            kept = {k: v for k, v in self._drawn.items() if k < 0}  # of the training, the present epoch alone
            self._drawn = {**kept, key: [pairs[i] for i in order]}
        return self._drawn[key]

    def _of_pairs(self, pairs: Pairs, place: int, generator: random.Generator) -> Batch:
        rows = self.config.batch_size
        chosen = [pairs[(place * rows + i) % len(pairs)] for i in range(rows)]
        lengths = np.array([len(pair.ids) for pair in chosen])
        [padding] = special_ids(self.tokenizer, self.config.architecture, ["pad_token"])
        ids, types = np.full((rows, self.length), padding, np.int64), np.zeros((rows, self.length), np.int64)
        for row, pair in enumerate(chosen):
            ids[row, : lengths[row]], types[row, : lengths[row]] = pair.ids, pair.token_types
        follows = np.array([pair.next_sentence for pair in chosen])
        return self._hidden(ids, generator, lengths) | {"token_types": types, "lengths": lengths, "next": follows}

    def hide(self, windows: np.ndarray, generator: random.Generator) -> Batch:
        """Windows between the tokens that begin and end a text."""
        ends = [np.full((len(windows), 1), i) for i in (self.first, self.last)]
        return self._hidden(np.concatenate([ends[0], windows, ends[1]], axis=1), generator)

    def _hidden(self, ids: np.ndarray, generator: random.Generator, lengths: np.ndarray | None = None) -> Batch:
        seen, labels = mask_tokens(
            ids,
            self.tokenizer.vocab_size,
            self.mask,
            self.special,
            lengths=lengths,
            continues=self.continues,
            probability=self.options.hidden_share,
            generator=generator,
        )
        return {"ids": seen, "labels": labels}

    # --- the loss ----------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        """The hidden tokens, and the pairs of texts."""
        counts = {"masked": float((batch["labels"] != -100).sum())}
        return counts | ({"next": float(len(batch["next"]))} if "next" in batch else {})

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sums of the cross-entropies, in nats."""
        logits, labels, follows = self._logits(model, batch)
        sums = {"masked": ops.cross_entropy(logits, labels, reduction="sum")}
        if follows is not None:
            sums["next"] = ops.cross_entropy(follows, batch["next"], reduction="sum")
        return sums

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The terms of the loss, and the shares of hidden tokens and of pairs that are right."""
        logits, labels, follows = self._logits(model, batch)
        loss = ops.cross_entropy(logits, labels, reduction="sum").item()
        found = {"masked": (loss, float(len(labels))), "accuracy": right(logits, labels)}
        if follows is not None:
            found["next"] = ops.cross_entropy(follows, batch["next"], reduction="sum").item(), float(len(batch["next"]))
            found["next_accuracy"] = right(follows, batch["next"])
        return found

    def _logits(self, model: Any, batch: Batch) -> tuple[Tensor, Any, Tensor | None]:
        """Logits (n, V) of the hidden tokens, and the tokens (n,); logits (B, 2) of the pairs."""
        x = model.features(batch["ids"], *(batch.get(name) for name in ("token_types", "lengths")))
        labels = batch["labels"].reshape(-1)
        hidden = np.flatnonzero(labels != -100)
        logits = model.head(x.reshape(labels.size, -1).index_select(0, hidden), model.wte.weight)
        return logits, labels[hidden], model.next_sentence(model.pool(x)) if "next" in batch else None

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """A text of the validation part with gaps, and what the model fills in."""
        row = self.first_row()
        guesses = self._logits(model, row)[0].numpy().argmax(axis=1)
        places = np.flatnonzero(to_host(row["labels"][0]) != -100)
        gaps = dict(zip(places.tolist(), guesses.tolist(), strict=True))
        yield filled(self.tokenizer, to_host(row["ids"][0]), gaps, self.special)


def documents_of(text: str, tokenizer: Tokenizer) -> list[list[list[int]]]:
    """The documents of a text, each a list of sentences, each a list of ids; see the top of this file."""
    documents: list[list[list[int]]] = []
    size = DOCUMENT
    for paragraph in text.split("\n\n"):
        sentences = [tokenizer.encode(piece) for piece in re.split(r"(?<=[.!?])\s+|\n+", paragraph) if piece.strip()]
        sentences = [sentence for sentence in sentences if sentence]
        if sentences:
            if size >= DOCUMENT:
                documents.append([])
                size = 0
            documents[-1] += sentences
            size += sum(map(len, sentences))
    return documents


def continuations(tokenizer: Tokenizer) -> np.ndarray | None:
    """For each id (V,) if it continues a word, as "##ing" does; None for a tokenizer that does not mark it."""
    vocab = getattr(tokenizer, "vocab", {})
    marked = [i for token, i in vocab.items() if isinstance(token, str) and token.startswith("##")]
    if not marked:
        return None
    continues = np.zeros(tokenizer.vocab_size, bool)
    continues[marked] = True
    return continues
