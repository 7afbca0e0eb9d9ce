"""GRPO: a model answers, its answers get rewards, and those that are better than their group become likelier.

A step: draw prompts; sample `group_size` answers to each; reward each answer; compare it with its group
(losses/grpo.py); one step of the optimiser. The answers come from the model itself, so a batch is made on rank 0, and
then divided like any other.

Data are instructions with answers (data/instructions.py); the reward compares what was sampled with the answer. Data
"builtin" are sums of two numbers, made by data/arithmetic.py. Another reward is a subclass with its own `reward`.

Sampling and scoring use one temperature: the logits are divided by it in both, so that right after sampling every ratio
of probabilities is 1. No other filter is possible, because top-k and its like draw from another distribution than the
one that is scored. Each batch is sampled anew, so the ratio differs from 1 by rounding alone, and the loss is near 0
although its gradient is not; see `reward` for whether the model learns.

Logged, under TRL's names: reward, reward_std, frac_reward_zero_std (the share of groups with equal rewards, from which
nothing is learned), completions/mean_length, completions/clipped_ratio (the share that did not end), and kl. A
validation measures the likeliest answers to held-out prompts: val_reward is their mean reward, and val_missing_reward
is 1 - val_reward, which stands in the place of val_loss, as the number that is to fall.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from minillm.autograd import Tensor, no_grad
from minillm.backend import Array
from minillm.chat_templates import Message, template_for
from minillm.counted import counted
from minillm.data.arithmetic import REWARDS, make_problems
from minillm.data.batches import shuffled
from minillm.data.instructions import Instruction, encode_prompt, held_out, read_instructions, targets_of
from minillm.data.pairs import IGNORED
from minillm.data.preferences import pad_examples
from minillm.data.records import Records, converted
from minillm.device import to_host
from minillm.errors import InputError
from minillm.generate import Sampling, Sequences, end_tokens, evaluating, generate_batch
from minillm.lora import adapters_off, is_lora
from minillm.losses import clipped_surrogate, group_advantages, grpo_count, grpo_weights, k3_divergence
from minillm.losses.grpo import equal_rewards
from minillm.losses.log_probs import constant_beside
from minillm.parallel.objective import Batch, add_measures
from minillm.tokenizers import Tokenizer
from minillm.training.tasks.scoring import scored
from minillm.training.tasks.sft import new_tokenizer
from minillm.training.tasks.task import Task

BUILTIN = 2000  # problems of the data that are made here
DULL = 10  # steps without a group to learn from, after which a warning says so


@dataclass(frozen=True)
class GRPOOptions:
    """Settings of GRPO."""

    group_size: int = 8
    """Answers to each prompt, 2 or more; batch_size counts answers, and is a multiple of it."""
    answer_length: int = 32
    """Longest answer, in tokens."""
    temperature: float = 1.0
    """Temperature of sampling, and of the probabilities that are learned."""
    reward: Literal["exact", "number"] = "exact"
    """Answers with a reward of 1: the exact one, or any text whose last number is that of the answer."""
    scale: Literal["group", "batch", "none"] = "group"
    """Divisor of the difference from the group's mean: the standard deviation of group or batch, or none."""
    std: Literal["sample", "population"] = "sample"
    """Standard deviation with n - 1, as in TRL, or n."""
    average: Literal["grpo", "bnpo", "dapo", "dr_grpo"] = "dapo"
    """How tokens weigh in the loss: see losses/grpo.py."""
    eps_low: float = 0.2
    """Least ratio of probabilities, below 1, at which a token is still made less likely."""
    eps_high: float = 0.2
    """Largest ratio of probabilities, above 1, at which a token is still made likelier; DAPO has 0.28."""
    beta: float = 0.0
    """Weight of the distance from the model at the start, with LoRA from that without adapters; 0: no copy of it."""
    mask_truncated: bool = False
    """Learn nothing from answers that did not end within answer_length."""
    template: str | None = None
    """Chat template (chatml, llama3, alpaca, ...); by default the one of the tokenizer, or alpaca if it has none."""

    def __post_init__(self):
        for name, least in (("group_size", 2), ("answer_length", 1)):
            if getattr(self, name) < least:
                raise InputError(f"train: {name} is {getattr(self, name)}; give {least} or more")
        if not 0 < self.temperature < np.inf:
            raise InputError(f"train: temperature is {self.temperature}; give a number above 0, such as 1")
        for name in ("eps_low", "eps_high", "beta"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"train: {name} is {getattr(self, name)}; give 0 or more")


class Sampled(NamedTuple):
    """An answer that a model has sampled."""

    ids: list[int]  # with the token that ends it, if it has ended
    log_probs: list[float]  # of each, from the distribution that it was drawn from
    ended: bool


class GRPOTask(Task):
    """Prompts with answers; a batch has G rows for each of its prompts, one sampled answer behind the prompt in each.

    ids and targets (B, T), the targets -100 but for answers; old (B, T), the log-probabilities when they were sampled;
    advantages (B,); counts (B,), 0 for answers that are not learned from; reference (B, T) if beta is not 0.
    """

    name = "grpo"
    Options = GRPOOptions
    models: ClassVar = {"gpt2": "GPT2", "llama": "Llama", "gemma": "Gemma"}
    samples = True
    measured_first = True
    validated = "1 - held-out reward"

    def __init__(self, config: Any, tokenizer: Tokenizer | None = None):
        super().__init__(config, tokenizer)
        if config.batch_size % self.options.group_size:
            raise InputError(
                f"train: batch_size={config.batch_size} answers are no whole number of groups of "
                f"{self.options.group_size}; give a multiple of --group-size"
            )
        records = builtin(config.seed) if config.data == "builtin" else read_instructions(config.data)
        out = held_out(records.items, config.validation_fraction)  # (N,)
        self.tokenizer = tokenizer or new_tokenizer(config, records.items, out)
        self.template = template_for(self.tokenizer, self.options.template)
        self.records, prompts, kept = converted(records, lambda one: encode_prompt(one, self.tokenizer, self.template))
        longest = config.model.context - self.options.answer_length  # of a prompt with room for an answer
        fits = [number for number, prompt in enumerate(prompts) if 0 < len(prompt) <= longest]
        self.too_long = len(prompts) - len(fits)
        self.prompts = [prompts[number] for number in fits]
        self.instructions = [self.records.items[number] for number in fits]
        sides = out[np.array(kept, int)[fits]]
        self.learned, self.out = np.flatnonzero(~sides), np.flatnonzero(sides)
        if not len(self.learned) or not len(self.out):
            raise InputError(
                f"train: {config.data} leaves no prompt to learn from or none held out: {self.left_out()}; give more "
                "or shorter records, or a smaller --answer-length"
            )
        self.stop = self.template.stop_ids(self.tokenizer)
        self.reference: Any = None  # the model at the start, if beta is not 0, and adapters do not tell it
        self.noted: dict[str, float] = {}
        self.measured: dict[str, tuple[Any, float]] = {}
        self.dull = 0  # steps in a row from which nothing could be learned

    def reward(self, instruction: Instruction, written: str) -> float:
        """The reward of an answer, a finite number; NaN if it cannot be judged."""
        return REWARDS[self.options.reward](instruction.messages[-1].content, written)

    # --- data ------------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """The numbers of prompts, the tokenizer, and a checksum of all prompts and answers."""
        checksum = 0
        for number, (prompt, instruction) in enumerate(zip(self.prompts, self.instructions, strict=True)):
            text = f"{number in self.out} {prompt} {instruction.messages[-1].content}"
            checksum = zlib.crc32(text.encode(), checksum)
        return f"{len(self.learned)}+{len(self.out)}-{self.tokenizer.fingerprint()}-{checksum:08x}"

    def summary(self) -> str:
        """The number of prompts, and what was left out."""
        prompts = self.config.batch_size // self.options.group_size
        return (
            f"{counted(len(self.learned), 'prompt')} to learn from, {prompts} a step with "
            f"{self.options.group_size} answers each, {len(self.out):,} held out; {self.left_out()}"
        )

    def left_out(self) -> str:
        """The numbers of records read and left out, and the reasons."""
        text = self.records.summary()
        return f"{text}; {self.too_long:,} too long for the context, and dropped" if self.too_long else text

    # --- a batch ---------------------------------------------------------------------------------------------------

    def begin(self, model: Any, kept: Mapping[str, Array]) -> Mapping[str, Array]:
        """Keep the weights of the start, if the loss has a distance from them."""
        if not self.options.beta or is_lora(model):
            return {}
        kept = kept or {name: array.copy() for name, array in model.state_dict().items()}
        self.reference = type(model)(model.config).to(self.config.device, self.config.dtype)
        self.reference.load_state_dict(kept)
        self.reference.eval()
        return kept

    def batch(self, step: int, model: Any = None) -> Batch:
        """Answers that the model samples now, with their rewards; the same ones for the same seed, step and weights."""
        G, config = self.options.group_size, self.config
        prompts = self.learned[shuffled(len(self.learned), config.batch_size // G, config.seed, step)]
        numbers = np.repeat(prompts, G)  # (B,)
        answers = sample_answers(
            model,
            [self.prompts[number] for number in numbers],
            *(self.options.answer_length, self.options.temperature),
            stop=[*self.stop, *end_tokens(model)],
            seed=seed_of(config.seed, step),
        )
        rewards = np.array(
            [self.reward(self.instructions[n], self.text(one.ids)) for n, one in zip(numbers, answers, strict=True)]
        ).reshape(-1, G)  # (N, G)
        self.note(rewards, answers)
        batch = self.made(numbers, answers, group_advantages(rewards, self.options.scale, self.options.std))
        if self.options.beta:
            with no_grad(), adapters_off(model) if is_lora(model) else contextlib.nullcontext():
                found = scored(self.reference or model, batch["ids"], batch["targets"], self.options.temperature)
            batch["reference"] = to_host(found.log_probs.data)
        return batch

    def made(self, numbers: np.ndarray, answers: Sequence[Sampled], advantages: np.ndarray) -> Batch:
        """The arrays of sampled answers."""
        examples = []
        for number, answer in zip(numbers, answers, strict=True):
            ids = np.array([*self.prompts[number], *answer.ids])
            examples.append(targets_of(ids, np.arange(len(ids)) >= len(self.prompts[number])))
        ids, targets, lengths = pad_examples(examples)
        old = np.zeros(ids.shape, np.float32)
        old[targets != IGNORED] = np.concatenate([answer.log_probs for answer in answers])
        learned = np.array([answer.ended or not self.options.mask_truncated for answer in answers])  # (B,)
        batch = {"ids": ids, "targets": targets, "lengths": lengths, "old": old, "learned": learned}
        batch["advantages"] = advantages.reshape(-1).astype(np.float32)
        return batch

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer, without the token that ends it."""
        return self.tokenizer.decode([one for one in ids if one not in self.stop])

    def note(self, rewards: np.ndarray, answers: Sequence[Sampled]) -> None:
        """Keep what is logged of a batch, and warn when nothing could be learned from many."""
        scored_rewards = rewards[~np.isnan(rewards)]
        equal = equal_rewards(rewards).mean()
        self.noted = {
            "reward": float(scored_rewards.mean()) if scored_rewards.size else 0.0,
            "reward_std": float(scored_rewards.std(ddof=1)) if scored_rewards.size > 1 else 0.0,
            "frac_reward_zero_std": float(equal),
            "completions/mean_length": float(np.mean([len(answer.ids) for answer in answers])),
            "completions/clipped_ratio": float(np.mean([not answer.ended for answer in answers])),
        }
        self.dull = self.dull + 1 if equal == 1 else 0
        if self.dull == DULL:
            warnings.warn(
                f"grpo: for {DULL} steps all answers to each prompt got the same reward (mean "
                f"{self.noted['reward']:.2f}), from which nothing can be learned; take easier or harder prompts, a "
                "higher --temperature or a larger --group-size",
                stacklevel=2,
            )

    def notes(self) -> dict[str, float]:
        """The measures that TRL logs; means over tokens are those of this rank."""
        means = {name: float(total) / count for name, (total, count) in self.measured.items() if count}
        self.measured = {}
        return self.noted | means

    def remark(self, record: Mapping[str, Any]) -> str:
        """The rewards, which tell whether the model learns: the loss of a step is near 0, and its gradient is not."""
        held_out = f"held-out reward {record['val_reward']:.3f}"
        if "reward" not in record:
            return held_out
        norm = "not finite" if record["grad_norm"] is None else f"{record['grad_norm']:.2f}"
        return f"{held_out}, sampled {record['reward']:.3f}, norm of the gradient {norm} (a loss near 0 is usual)"

    def tokens(self, batch: Batch) -> int:
        """The number of tokens, without padding."""
        return int(batch["lengths"].sum())

    # --- the loss --------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        """By what the loss of the whole batch is divided; of a validation, the number of prompts."""
        if "prompt" in batch:
            return {"loss": float(len(batch["prompt"]))}
        return {"loss": grpo_count(learned_from(batch), self.options.average, self.options.answer_length)}

    def sums(self, model: Any, batch: Batch) -> dict[str, Tensor]:
        """The sum of the weighted losses of the tokens of these answers."""
        model.eval()  # no dropout: the ratio is that of the weights
        options = self.options
        log_probs = scored(model, batch["ids"], batch["targets"], options.temperature).log_probs  # (B, T)
        losses = clipped_surrogate(log_probs, batch["old"], batch["advantages"], options.eps_low, options.eps_high)
        used = learned_from(batch)  # (B, T)
        if options.beta:
            divergence = k3_divergence(log_probs, batch["reference"])
            losses = losses + options.beta * divergence
            add_measures(self.measured, [("kl", ((divergence.data * used).sum(), float(used.sum())))])
        ratio = np.exp(log_probs.data - batch["old"])
        beyond = (np.abs(ratio - 1) * used).sum()
        add_measures(self.measured, [("ratio_error", (beyond, float(used.sum())))])
        weights = constant_beside(grpo_weights(used, options.average), log_probs)
        return {"loss": (losses * weights).sum()}

    # --- what it can -----------------------------------------------------------------------------------------------

    def evaluation_batches(self, count: int) -> Iterator[Batch]:
        """The numbers of held-out prompts, as many as fit into so many batches."""
        size = self.config.batch_size
        numbers = self.out[: count * size]
        return ({"prompt": numbers[start : start + size]} for start in range(0, len(numbers), size))

    def measures(self, model: Any, batch: Batch) -> dict[str, tuple[float, float]]:
        """The rewards of the likeliest answers to held-out prompts; the loss is what is missing of a reward of 1."""
        numbers = [int(number) for number in batch["prompt"]]
        texts = self.likeliest(model, numbers)
        rewards = [self.reward(self.instructions[n], text) for n, text in zip(numbers, texts, strict=True)]
        judged = np.array(rewards)[~np.isnan(rewards)]
        missing = float((1 - judged).sum()), float(len(judged))
        return {"loss": missing, "missing_reward": missing, "reward": (float(judged.sum()), float(len(judged)))}

    def likeliest(self, model: Any, numbers: Sequence[int]) -> list[str]:
        """The likeliest answers to these prompts."""
        stop = [*self.stop, *end_tokens(model)]
        prompts = [self.prompts[number] for number in numbers]
        found = generate_batch(model, prompts, self.options.answer_length, stop=stop, temperature=0)
        return [self.text(ids) for ids in found]

    def preview(self, model: Any, step: int) -> Iterator[tuple[str, str]]:
        """Held-out prompts, and the likeliest answers."""
        shown = self.out[:5].tolist()
        for number, text in zip(shown, self.likeliest(model, shown), strict=True):
            yield self.instructions[number].messages[-2].content, text


def learned_from(batch: Batch) -> Array:
    """The tokens that are learned from, (B, T): those of answers, but of left-out ones."""
    return (batch["targets"] != IGNORED) & batch["learned"][:, None]


def builtin(seed: int) -> Records[Instruction]:
    """Sums of two numbers below 100, made here."""
    problems = make_problems(BUILTIN, seed=seed)
    items = [
        Instruction((Message("user", prompt), Message("assistant", answer)), raw=True) for prompt, answer in problems
    ]
    return Records(items, list(range(1, len(items) + 1)), [])


def seed_of(seed: int, step: int) -> int:
    """The seed of a step's first answer; the others count up from it, and those of another step are far away."""
    return int.from_bytes(hashlib.sha256(f"grpo {seed} {step}".encode()).digest()[:7], "big")


def sample_answers(
    model: Any, prompts: Sequence[Sequence[int]], most: int, temperature: float, *, stop: Sequence[int], seed: int
) -> list[Sampled]:
    """Sample an answer to each prompt, together, with the log-probability that each token was drawn with.

    Answer i is that of `generate(model, prompts[i], most, seed=seed + i, temperature=temperature)`, up to rounding.
    """
    sampling, ends = Sampling(temperature), frozenset(stop)
    answers = [Sampled([], [], False) for _ in prompts]
    draws = [np.random.Generator(np.random.Philox(key=seed + i)) for i in range(len(prompts))]
    texts = Sequences("grpo", model, prompts)
    with evaluating(model):
        for _ in range(most):
            tokens = []
            for row, logits in zip(texts.prompts, texts.next_logits(), strict=True):
                p = sampling.probabilities(logits)
                tokens.append(int(draws[row].choice(len(p), p=p)))
                answers[row].ids.append(tokens[-1])
                answers[row].log_probs.append(float(np.log(p[tokens[-1]])))
                answers[row] = answers[row]._replace(ended=tokens[-1] in ends)
            texts.append(tokens)
            going = [row for row, token in enumerate(tokens) if token not in ends]
            if not going:
                break
            texts.select(going)
    return answers
