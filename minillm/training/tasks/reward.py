"""Reward: a model learns to score answers, from pairs of a better and a worse one.

The model is a decoder with a head that reads the last token of prompt and answer, the token that ends it (models/
heads.py), and the loss is that of Bradley and Terry (losses/reward.py). Transformers knows it as a
ForSequenceClassification with one label. The reward of one answer alone means nothing; only differences do, and the
accuracy is the share of held-out pairs whose better answer gets the higher reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.chat_templates import template_for
from minillm.data.instructions import Example
from minillm.data.pairs import IGNORED
from minillm.data.preferences import PairExample
from minillm.errors import InputError
from minillm.losses import bradley_terry_loss
from minillm.parallel.objective import Batch, add_measures
from minillm.pretrained import keep
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.answer_pairs import AnswerPairs, AnswerPairsOptions, padded
from minillm.training.tasks.task import left_out_of


@dataclass(frozen=True)
class RewardOptions(AnswerPairsOptions):
    """Settings of the training of a reward model."""

    centering: float = 0.0
    """Weight of the squared sum of a pair's rewards, which keeps rewards near 0; 0.01 is usual where it is used."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.centering < np.inf:
            raise InputError(f"train: centering is {self.centering}; give 0 or a small positive number")


class RewardTask(AnswerPairs):
    """Pairs of answers, whose ids include the token that ends them, where the reward is read."""

    name = "reward"
    Options = RewardOptions
    models: ClassVar = {"gpt2": "GPT2ForSequenceClassification", "llama": "LlamaForSequenceClassification"}

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        self.logged: dict[str, tuple[Any, float]] = {}  # of the step at hand

    @classmethod
    def shape(cls, config: Any, tokenizer: Tokenizer) -> Any:
        """The configuration of the model: one number, and a padding id that ends no text, as transformers needs it."""
        shape = super().shape(config, tokenizer)
        ends = {tokenizer.eos_id, *template_for(tokenizer, config.task.template).stop_ids(tokenizer)}
        possible = (tokenizer.pad_id, *tokenizer.special_tokens.values(), *range(len(ends)))
        padding = next(one for one in possible if one is not None and one not in ends)
        return replace(shape, labels=1, label_names=(), problem_type=None, padding_id=padding)

    @classmethod
    def start_from(cls, model: Any, opened: Any) -> str:
        """Give the body of a new model the weights of an opened one; a head that this lacks stays as it was drawn."""
        weights, own = opened.model.state_dict(), model.state_dict()
        fitting = {name: array for name, array in weights.items() if name in own and own[name].shape == array.shape}
        model.load_state_dict(own | fitting)
        keep(model, opened.saved_with)
        return left_out_of(opened, model)

    def made(self, numbers: Sequence[int] | np.ndarray) -> Batch:
        """The batch of the pairs with these numbers."""
        pairs = [self.pairs[number] for number in numbers]
        batch = padded([PairExample(*(_with_its_end(example) for example in pair)) for pair in pairs])
        del batch["targets"]
        return batch

    def counts(self, batch: Batch) -> dict[str, float]:
        """The number of pairs."""
        return {"loss": float(len(batch["ids"]))}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the losses of the pairs."""
        losses, rewards = self._computed(model, batch)
        add_measures(self.logged, logged(rewards).items())
        return {"loss": losses.sum()}

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The loss, and the accuracy and mean difference of the rewards."""
        losses, rewards = self._computed(model, batch)
        found = {name: (float(total), count) for name, (total, count) in logged(rewards).items()}
        return {"loss": (losses.sum().item(), float(len(rewards)))} | found

    def notes(self) -> dict[str, float]:
        """The accuracy, and the mean difference and size of the rewards, over the pairs of this rank."""
        noted = {name: float(total) / count for name, (total, count) in self.logged.items()}
        self.logged = {}
        return noted

    def remark(self, record: Mapping[str, Any]) -> str:
        """The margin between the rewards of held-out answers, and how often the chosen one has the higher."""
        return f"margin {record['val_margin']:.3f}, accuracy {record['val_accuracy']:.0%}"

    def _computed(self, model: Any, batch: Batch) -> tuple[Tensor, Array]:
        """The loss of each pair (B,), and the rewards (B, 2)."""
        model.eval()  # no dropout: both answers meet one model
        B, _, T = batch["ids"].shape
        rewards = model(batch["ids"].reshape(2 * B, T), lengths=batch["lengths"].reshape(2 * B))  # (2B, 1)
        rewards = rewards.float().reshape(B, 2) if rewards.dtype.itemsize < 4 else rewards.reshape(B, 2)
        return bradley_terry_loss(rewards[:, 0], rewards[:, 1], centering=self.options.centering), rewards.data

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Held-out pairs, and the rewards of both answers."""
        for number in self.out[:3]:
            batch = self.made([number])
            [[chosen], [rejected]] = model(batch["ids"][0], lengths=batch["lengths"][0]).numpy().tolist()
            texts = [self.tokenizer.decode(one.targets[one.targets != IGNORED]) for one in self.pairs[number]]
            yield f"{texts[0]!r}: {chosen:.3f}\n", f"{texts[1]!r}: {rejected:.3f}"

    def next_steps(self, folder: str) -> list[str]:
        """The Python call that scores a text with the reward model."""
        return ["to score a text:", f'  minillm.load("{folder}")(ids, lengths=lengths)']


def _with_its_end(example: Example) -> Example:
    """An example whose ids end with the last token of its answer, where the reward is read; there are no targets.

    A template may put more behind the answer, such as a line break, which is no target.
    """
    last = np.flatnonzero(example.targets != IGNORED)[-1]
    ids = np.append(example.ids[: last + 1], example.targets[last])
    return Example(ids, np.full_like(ids, IGNORED))


def logged(rewards: Array) -> dict[str, tuple[Any, float]]:
    """The (sum, count) of what TRL logs, under its names; rewards (B, 2)."""
    B = float(len(rewards))
    return {
        "accuracy": ((rewards[:, 0] > rewards[:, 1]).sum(), B),
        "margin": ((rewards[:, 0] - rewards[:, 1]).sum(), B),
        "mean_reward": (rewards.sum(), 2 * B),
    }
