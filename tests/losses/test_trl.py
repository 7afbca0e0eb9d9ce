"""The losses beside TRL 1.16.0, whose trainers compute on log-probabilities that are given to them, and torchtune.

TRL has no free functions for most of its losses, so methods of its trainers are called with a stand-in for the
trainer, and a stand-in for the model that returns the log-probabilities.
"""

from __future__ import annotations

import collections
import contextlib
import os
import types
from typing import Any
from unittest import mock

import numpy as np
import pytest

from minillm import Tensor
from minillm.losses import (
    GRPO_AVERAGES,
    PREFERENCE_LOSSES,
    Pairs,
    bradley_terry_loss,
    group_advantages,
    grpo_loss,
    kto_loss,
    kto_reference_point,
    preference_loss,
    sequence_log_probs,
)

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # TRL warns as it is imported
SAME = dict(rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL, in the version whose formulas these are."""
    pytest.importorskip("torch")
    with mock.patch.dict(os.environ, TRL_EXPERIMENTAL_SILENCE="1"):
        package = pytest.importorskip("trl")
        if package.__version__ != "1.16.0":
            pytest.skip(f"trl is {package.__version__}, and 1.16.0 is compared with")
        pytest.importorskip("trl.experimental.cpo")
        pytest.importorskip("trl.experimental.orpo")
    return package


def trainer(**settings: Any) -> Any:
    """A stand-in with the attributes of a trainer that the methods ask for."""
    same = lambda x, **_: x  # noqa: E731
    accelerator = types.SimpleNamespace(
        device="cpu",
        num_processes=1,
        gather=same,
        gather_for_metrics=same,
        reduce=same,
        autocast=contextlib.nullcontext,
    )
    metrics: Any = {"train": collections.defaultdict(list), "eval": collections.defaultdict(list)}
    return types.SimpleNamespace(
        accelerator=accelerator, aux_loss_enabled=False, _metrics=metrics, _total_train_tokens=0, **settings
    )


# Pairs of answers of 3 to 6 tokens behind prompts of 2, in 8 places: log-probabilities of tokens 1 to 7.
PROMPT, PLACES, COUNT = 2, 8, 6


def drawn(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities of policy and reference (2B, T - 1), 0 outside of the answers, and which ids are answers."""
    lengths = rng.integers(3, PLACES - PROMPT + 1, 2 * COUNT)
    is_answer = (np.arange(PLACES) >= PROMPT) & (np.arange(PLACES) < PROMPT + lengths[:, None])  # (2B, T)
    policy, reference = (-3 * rng.random((2, 2 * COUNT, PLACES - 1)) * is_answer[:, 1:]).astype(np.float32)
    return policy, reference, is_answer


def pairs_of(policy: np.ndarray, reference: np.ndarray, is_answer: np.ndarray) -> Pairs:
    chosen, rejected = Tensor(policy[:COUNT], requires_grad=True), Tensor(policy[COUNT:], requires_grad=True)
    sums, lengths = reference.sum(1), is_answer.sum(1)
    return Pairs(chosen.sum(1), rejected.sum(1), sums[:COUNT], sums[COUNT:], lengths[:COUNT], lengths[COUNT:])


OTHERS = {"conservative", "reference_free", "simpo", "orpo"}  # not in TRL's DPO; see below


@pytest.mark.parametrize("loss", sorted(PREFERENCE_LOSSES.keys() - OTHERS))
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_and_its_family(trl: Any, loss: str, beta: float, rng) -> None:
    import torch

    smoothing = 0.15 if loss in ("robust", "exo_pair") else 0.0
    policy, reference, is_answer = drawn(rng)
    given = torch.tensor(policy, requires_grad=True)
    zeros = torch.zeros(given.shape)
    outputs = types.SimpleNamespace(log_probs=given, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    sums = torch.tensor(reference).sum(1)
    this = trainer(
        model=types.SimpleNamespace(training=False),
        beta=beta,
        label_smoothing=smoothing,
        loss_types=[loss],
        loss_weights=[1.0],
        args=types.SimpleNamespace(discopop_tau=0.05),
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    batch = {
        "input_ids": torch.zeros(is_answer.shape, dtype=torch.long),
        "attention_mask": torch.ones(is_answer.shape, dtype=torch.long),
        "completion_mask": torch.tensor(is_answer).long(),
        "ref_chosen_logps": sums[:COUNT],
        "ref_rejected_logps": sums[COUNT:],
    }
    theirs = trl.DPOTrainer._compute_loss(this, lambda **_: outputs, batch, False)
    theirs.backward()

    pairs = pairs_of(policy, reference, is_answer)
    ours = preference_loss(pairs, loss, beta=beta, label_smoothing=smoothing).mean()
    np.testing.assert_allclose(ours.item(), theirs.item(), **SAME)
    log_probs = Tensor(policy, requires_grad=True)
    sums_of = [log_probs[:COUNT].sum(1), log_probs[COUNT:].sum(1)]
    preference_loss(Pairs(*sums_of, *pairs[2:]), loss, beta=beta, label_smoothing=smoothing).mean().backward()
    np.testing.assert_allclose(log_probs.grad, given.grad.numpy(), rtol=1e-5, atol=1e-6)
    logged = this._metrics["eval"]
    np.testing.assert_allclose(logged["rewards/chosen"], (beta * pairs.r_w).mean().item(), **SAME)
    np.testing.assert_allclose(logged["rewards/margins"], (beta * pairs.d).mean().item(), rtol=1e-5)
    np.testing.assert_allclose(logged["logps/rejected"], pairs.rejected.mean().item(), **SAME)


@pytest.mark.parametrize(("ours", "theirs"), [("simpo", "simpo"), ("reference_free", "sigmoid")])
def test_losses_without_a_reference(trl: Any, ours: str, theirs: str, rng) -> None:
    """TRL's CPO, whose preference term without a reference is DPO's with one that finds all answers equally likely."""
    import torch

    policy, reference, is_answer = drawn(rng)
    pairs = pairs_of(policy, reference, is_answer)
    chosen, rejected = (torch.tensor(x.data) for x in (pairs.chosen, pairs.rejected))
    if ours == "simpo":
        chosen, rejected = chosen / torch.tensor(pairs.chosen_lengths), rejected / torch.tensor(pairs.rejected_lengths)
    this = trainer(alpha=0.0, beta=2.0, loss_type=theirs, simpo_gamma=0.7, label_smoothing=0.0)
    expected = trl.experimental.cpo.CPOTrainer.cpo_loss(this, chosen, rejected)[0]
    losses = preference_loss(pairs, ours, beta=2.0, gamma=0.7)
    np.testing.assert_allclose(losses.data, expected.numpy(), **SAME)


def test_orpo(trl: Any, rng) -> None:
    import torch

    pairs = pairs_of(*drawn(rng))
    means = [torch.tensor(x.data / n) for x, n in zip(pairs[:2], pairs[4:], strict=True)]
    theirs = trl.experimental.orpo.ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), *means)[0]  # added with a minus
    np.testing.assert_allclose(preference_loss(pairs, "orpo", beta=0.3).data, -theirs.numpy(), **SAME)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_conservative_loss_of_torchtune(smoothing: float, rng) -> None:
    """TRL has dropped it; this is the formula of torchtune bd2a0fc, rlhf/loss/dpo.py, written out."""
    torch = pytest.importorskip("torch")
    pairs, beta = pairs_of(*drawn(rng)), 0.3
    logits = torch.tensor(pairs.d.data)
    logsigmoid = torch.nn.functional.logsigmoid
    expected = -logsigmoid(beta * logits) * (1 - smoothing) - logsigmoid(-beta * logits) * smoothing
    losses = preference_loss(pairs, "conservative", beta=beta, label_smoothing=smoothing)
    np.testing.assert_allclose(losses.data, expected.numpy(), **SAME)


def test_kto(trl: Any, rng) -> None:
    import torch

    policy, reference, is_answer = drawn(rng)
    mismatched, reference_mismatched = policy[::-1].copy() + 0.2, reference[::-1].copy()
    desirable = np.arange(2 * COUNT) % 3 != 1
    this = trainer(
        model=types.SimpleNamespace(training=False),
        beta=0.2,
        desirable_weight=1.5,
        undesirable_weight=0.8,
        loss_type="kto",
        calculate_KL=True,
        precompute_ref_logps=True,
        _compute_kl_logps=lambda model, batch: torch.tensor(mismatched).sum(1),
    )
    zeros = torch.zeros(policy.shape)
    outputs = types.SimpleNamespace(
        log_probs=torch.tensor(policy), entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), logits=None
    )
    batch = {
        "input_ids": torch.zeros(is_answer.shape, dtype=torch.long),
        "attention_mask": torch.ones(is_answer.shape, dtype=torch.long),
        "completion_mask": torch.tensor(is_answer).long(),
        "label": torch.tensor(desirable),
        "ref_logps": torch.tensor(reference).sum(1),
        "ref_KL_logps": torch.tensor(reference_mismatched).sum(1),
    }
    theirs = trl.KTOTrainer._compute_loss(this, lambda **_: outputs, batch, False)
    z = kto_reference_point((mismatched - reference_mismatched).sum(1))
    assert z > 0
    log_ratios = Tensor((policy - reference).sum(1))
    ours = kto_loss(log_ratios, desirable, z, 0.2, desirable_weight=1.5, undesirable_weight=0.8).mean()
    np.testing.assert_allclose(ours.item(), theirs.item(), **SAME)


@pytest.mark.parametrize("centering", [None, 0.01])
def test_the_loss_of_a_reward_model(trl: Any, centering: float | None, rng) -> None:
    import torch

    scores, margin = 3 * rng.normal(size=(2 * COUNT, 1)).astype(np.float32), rng.random(COUNT).astype(np.float32)
    this = trainer(
        model=types.SimpleNamespace(training=False),
        args=types.SimpleNamespace(center_rewards_coefficient=centering),
    )
    batch = {"margin": torch.tensor(margin), "attention_mask": torch.ones(2 * COUNT, 3)}
    outputs = types.SimpleNamespace(logits=torch.tensor(scores))
    theirs = trl.RewardTrainer.compute_loss(this, lambda **_: outputs, batch)
    chosen, rejected = Tensor(scores[:COUNT, 0]), Tensor(scores[COUNT:, 0])
    ours = bradley_terry_loss(chosen, rejected, margin, centering or 0.0).mean()
    np.testing.assert_allclose(ours.item(), theirs.item(), **SAME)


@pytest.mark.parametrize("average", GRPO_AVERAGES)
@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_grpo(trl: Any, average: str, beta: float, rng) -> None:
    import torch

    log_probs = -3 * rng.random((4, 6)).astype(np.float32)
    old, reference = (log_probs + 0.4 * rng.normal(size=(2, 4, 6))).astype(np.float32)
    counted, advantages = np.arange(6) < np.array([[6], [1], [3], [4]]), np.float32([1.5, -0.5, -0.5, 2.0])
    given = torch.tensor(log_probs, requires_grad=True)
    this = trainer(
        model=types.SimpleNamespace(training=True),
        args=types.SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *_, **__: (given, torch.zeros(4, 6), None),
        loss_type=average,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.28,
        max_completion_length=7,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    batch = {
        "prompt_ids": torch.zeros(4, 2, dtype=torch.long),
        "prompt_mask": torch.ones(4, 2, dtype=torch.long),
        "completion_ids": torch.zeros(4, 6, dtype=torch.long),
        "completion_mask": torch.tensor(counted).long(),
        "advantages": torch.tensor(advantages),
        "old_per_token_logps": torch.tensor(old),
        "ref_per_token_logps": torch.tensor(reference),
        "num_items_in_batch": torch.tensor(counted.sum()),
    }
    theirs = trl.GRPOTrainer._compute_loss(this, None, batch)
    theirs.backward()
    x = Tensor(log_probs, requires_grad=True)
    ours = grpo_loss(
        *(x, old, advantages, counted),
        average=average,
        max_length=7,
        eps_high=0.28,
        beta=beta,
        reference_log_probs=reference,
    )
    ours.backward()
    np.testing.assert_allclose(ours.item(), theirs.item(), **SAME)
    np.testing.assert_allclose(x.grad, given.grad.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages(trl: Any, scale: str, rng) -> None:
    """The lines of GRPOTrainer._generate_and_score_completions around `nanstd`, whose n/(n - 1) is in float32."""
    import torch
    from trl.trainer.utils import nanstd

    rewards = rng.integers(0, 3, (5, 4)).astype(np.float64)
    rewards[1] = 1
    rewards[2, 1:], rewards[3, 0] = np.nan, np.nan
    given = torch.tensor(rewards)
    std = nanstd(given, dim=1)[:, None] if scale == "group" else nanstd(given)
    expected = given - given.nanmean(1, keepdim=True)
    expected = torch.nan_to_num(expected if scale == "none" else expected / (std + 1e-4))
    np.testing.assert_allclose(group_advantages(rewards, scale), expected.numpy(), **SAME)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities(trl: Any, temperature: float, rng) -> None:
    import torch
    from trl.trainer.utils import selective_log_softmax

    logits, targets = 4 * rng.normal(size=(2, 5, 11)).astype(np.float32), rng.integers(0, 11, (2, 5))
    expected = selective_log_softmax(torch.tensor(logits), torch.tensor(targets), temperature).sum(1)
    ours = sequence_log_probs(Tensor(logits), targets, temperature)
    np.testing.assert_allclose(ours.data, expected.numpy(), rtol=1e-6)
