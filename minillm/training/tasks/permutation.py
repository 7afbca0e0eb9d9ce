"""Predict tokens in a random order, each from those that are before it in that order (XLNet)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minillm import ops, random
from minillm.autograd import Tensor
from minillm.data import permute_tokens
from minillm.device import to_host
from minillm.errors import InputError
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.families import filled, right, scale_matrices, special_ids
from minillm.training.tasks.windows import WindowTask


@dataclass(frozen=True)
class PermutationOptions:
    """Settings of a training by permutations."""

    length: int = 128
    """Tokens of each sequence, special ones included."""
    one_in: int = 6
    """Of so many tokens, one is predicted."""

    def __post_init__(self):
        if self.length < 5 or self.one_in < 1:
            raise InputError(f"train: length is {self.length} and one_in {self.one_in}; give 5 or more, and 1 or more")


class PermutationTask(WindowTask):
    """Windows before <sep> and <cls>; the loss is the mean over the predicted tokens (data/permutation.py)."""

    name = "permutation"
    Options = PermutationOptions
    models: ClassVar = {"xlnet": "XLNetLMHeadModel"}

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        if config.model.bi_data or config.model.reuse_len is not None:
            raise InputError("train: windows come in random order, without a memory; leave bi_data and reuse_len out")
        self.ends = special_ids(self.tokenizer, config.architecture, ["sep_token", "cls_token"])

    @classmethod
    def make_model(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """A new model of these settings."""
        return scale_matrices(super().make_model(config, tokenizer))

    def hide(self, windows: np.ndarray, generator: random.Generator) -> Batch:
        """Windows with an order, and the tokens that are predicted."""
        ends = np.tile(self.ends, (len(windows), 1))
        ids = np.concatenate([windows, ends], axis=1)
        return permute_tokens(ids, self.special, one_in=self.options.one_in, generator=generator)._asdict()

    def counts(self, batch: Batch) -> dict[str, float]:
        """The predicted tokens."""
        return {"loss": float((batch["labels"] != -100).sum())}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the cross-entropies, in nats."""
        logits, labels = self._logits(model, batch)
        return {"loss": ops.cross_entropy(logits, labels, reduction="sum")}

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The loss, and the share of the predicted tokens that are right."""
        logits, labels = self._logits(model, batch)
        loss = ops.cross_entropy(logits, labels, reduction="sum").item()
        return {"loss": (loss, float(len(labels))), "accuracy": right(logits, labels)}

    def _logits(self, model: Any, batch: Batch) -> tuple[Tensor, Any]:
        """Logits (n, V) of the predicted tokens, and the tokens (n,)."""
        inputs = {name: batch[name] for name in ("ids", "perm_mask", "target_mapping")}
        logits, labels = model(**inputs), batch["labels"].reshape(-1)
        known = np.flatnonzero(labels != -100)
        return logits.reshape(labels.size, -1).index_select(0, known), labels[known]

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """A text of the validation part with gaps, and the likeliest tokens there."""
        row = self.first_row()
        guesses = self._logits(model, row)[0].numpy().argmax(axis=1)
        places = to_host(row["target_mapping"][0]).nonzero()[1]
        gaps = dict(zip(places.tolist(), guesses.tolist(), strict=True))
        yield filled(self.tokenizer, to_host(row["ids"][0]), gaps, self.special)
