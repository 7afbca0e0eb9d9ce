"""Tell texts apart: a head on an encoder learns the classes of labelled texts (data/labelled.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from minillm import ops
from minillm.autograd import Tensor
from minillm.data.labelled import read_labelled
from minillm.errors import InputError, did_you_mean
from minillm.evaluation.heads import LENGTH, classify, framed, inputs_of, longest
from minillm.models.labels import names_of_labels
from minillm.parallel.objective import Batch
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.heads import HeadOptions, HeadTask, checksum_of, models_of

SHOWN = 5  # held-out texts of a preview
HEAD = "ForSequenceClassification"


@dataclass(frozen=True)
class ClassifyOptions(HeadOptions):
    """Settings of a classification."""

    text: str = "text"
    """Name of the field or column with the text."""
    label: str = "label"
    """Name of the field or column with the class."""
    max_length: int = LENGTH
    """Tokens that are read of a text, with its special tokens; a longer one is cut at its end."""

    def __post_init__(self):
        super().__post_init__()
        if self.max_length < 3:
            raise InputError(f"train: max_length is {self.max_length}; give 3 or more")


class ClassifyTask(HeadTask):
    """Labelled texts, of which some are held out; the loss is the cross-entropy of their classes, in nats per text.

    The classes are those of the model's configuration, `label_names`.
    """

    name = "classify"
    Options = ClassifyOptions
    head = HEAD
    models: ClassVar = models_of(HEAD)

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.data = read_labelled(config.data, self.options.text, self.options.label)
        self.labels = names_of_labels(config.model)
        numbers = {name: number for number, name in enumerate(self.labels)}
        check_labels(self.data.labels, self.labels)
        parts = self.data.split(config.validation_fraction)
        self.prepare(tokenizer, (example.text for example in parts[0]))
        self.length = longest(self.shape(config, self.tokenizer), self.options.max_length)
        self.texts = [example.text for example in parts[1]]
        self.rows = [[framed(self.tokenizer, self.frame, one.text, self.length) for one in part] for part in parts]
        self.classes = [np.array([numbers[one.label] for one in part]) for part in parts]
        self.lengths = [np.array([len(ids) for ids, _ in rows]) for rows in self.rows]

    def fingerprint(self) -> str:
        """The numbers of texts, the tokenizer, and a checksum of all ids and classes."""
        rows = [ids for part in self.rows for ids, _ in part]
        counts = "+".join(str(len(part)) for part in self.rows)
        checksum = checksum_of([*rows, *(classes.tolist() for classes in self.classes)])
        return f"{counts}-{self.tokenizer.fingerprint()}-{checksum}"

    def summary(self) -> str:
        """The numbers of texts, of those held out, and of those cut."""
        cut = sum(int((lengths == self.length).sum()) for lengths in self.lengths)
        most = np.bincount(self.classes[1]).max() / len(self.classes[1])
        text = (
            f"{self.data.summary()}; {len(self.rows[0]):,} to learn, {len(self.rows[1]):,} held out (always the most "
            f"frequent class would be right for {most:.1%})"
        )
        return f"{text}; {cut:,} have {self.length} tokens or more, and are cut there" if cut else text

    def made(self, part: int, numbers: np.ndarray) -> Batch:
        """The batch of some texts, with their classes."""
        rows = [self.rows[part][number] for number in numbers]
        return self.padded(rows) | {"classes": self.classes[part][numbers]}

    def counts(self, batch: Batch) -> dict[str, float]:
        """The number of texts."""
        return {"loss": float(len(batch["classes"]))}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the cross-entropies of the classes."""
        return {"loss": ops.cross_entropy(model(**inputs_of(batch)), batch["classes"], reduction="sum")}

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The loss, and how many classes are right."""
        logits, count = model(**inputs_of(batch)), self.counts(batch)["loss"]
        right = float((logits.data.argmax(-1) == batch["classes"]).sum())
        loss = ops.cross_entropy(logits, batch["classes"], reduction="sum").item()
        return {"loss": (loss, count), "accuracy": (right, count)}

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Held-out texts of all parts of the data, the likeliest class of each, and the right one."""
        for number in np.linspace(0, len(self.texts) - 1, SHOWN).astype(int):
            text, right = self.texts[number], self.labels[self.classes[1][number]]
            shares = classify(model, self.tokenizer, [text], self.length)[0]
            said = self.labels[int(shares.argmax())]
            verdict = "right" if said == right else f"wrong: it is {right}"
            yield f"{text}\n", f"-> {said} ({shares.max():.0%}), {verdict}"


def check_labels(there: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise InputError if the data has a class that the model lacks."""
    unknown = [name for name in there if name not in known]
    if unknown:
        raise InputError(
            f"train: the data has {len(unknown)} classes that the model lacks ({', '.join(unknown)}; the model has "
            f"{', '.join(known)}){did_you_mean(unknown[0], known)}; give --new-head to begin with a head for the "
            "classes of the data, or rename them"
        )
