"""Losses of training after pretraining, as plain functions of Tensors: no model and no data are inside.

- log_probs.py: how likely a model finds an answer;
- preference.py: DPO and its family, for pairs of a better and a worse answer;
- reward.py: the loss of a model that scores answers;
- grpo.py: reinforcement learning from rewards of sampled answers.
"""

from minillm.losses.grpo import (
    GRPO_AVERAGES,
    clipped_surrogate,
    group_advantages,
    grpo_count,
    grpo_loss,
    grpo_weights,
    k3_divergence,
)
from minillm.losses.log_probs import answer_lengths, sequence_log_probs, token_log_probs
from minillm.losses.preference import (
    PREFERENCE_LOSSES,
    WITHOUT_REFERENCE,
    Pairs,
    PreferenceSettings,
    kto_loss,
    kto_reference_point,
    preference_loss,
)
from minillm.losses.reward import bradley_terry_loss

__all__ = [
    "GRPO_AVERAGES",
    "PREFERENCE_LOSSES",
    "WITHOUT_REFERENCE",
    "Pairs",
    "PreferenceSettings",
    "answer_lengths",
    "bradley_terry_loss",
    "clipped_surrogate",
    "group_advantages",
    "grpo_count",
    "grpo_loss",
    "grpo_weights",
    "k3_divergence",
    "kto_loss",
    "kto_reference_point",
    "preference_loss",
    "sequence_log_probs",
    "token_log_probs",
]
