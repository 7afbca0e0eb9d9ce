"""DPO and its family: losses for pairs of a better and a worse answer to one prompt.

With log p of an answer (log_probs.py) by the model in training, the policy, and by a frozen reference model, which is
the policy as it was at the start:

    r_w = log p(chosen) - log p_ref(chosen)          r_l = log p(rejected) - log p_ref(rejected)          d = r_w - r_l

r says by how much more likely an answer has become; beta r is its implicit reward. Each loss below is a function of
these. At the start r_w = r_l = 0, and a run that does not begin with the stated loss and derivatives is broken:
policy and reference then differ, by dropout or by the precision of their numbers, say.

The losses that write m_w and m_l use the mean per token in place of the sum, so that long answers weigh no more than
short ones. n_w and n_l are the numbers of tokens, the end token included. s is the sigmoid.

In the table, "start" is the loss at the start, and its derivatives by r_w and by r_l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from minillm import ops
from minillm.autograd import Tensor
from minillm.backend import Array
from minillm.errors import InputError, check_shapes, did_you_mean
from minillm.losses.log_probs import constant_beside


class Pairs(NamedTuple):
    """The log-probabilities of B pairs of answers, each the sum over the answer's tokens; see `sequence_log_probs`.

    Those of the policy have gradients; everything else is constant.
    """

    chosen: Tensor  # (B,), by the policy
    rejected: Tensor  # (B,)
    reference_chosen: Any = 0.0  # (B,), by the reference; 0 for losses without one
    reference_rejected: Any = 0.0  # (B,)
    chosen_lengths: Any = 1.0  # (B,), in tokens
    rejected_lengths: Any = 1.0  # (B,)

    @property
    def r_w(self) -> Tensor:
        return self.chosen - constant_beside(self.reference_chosen, self.chosen)  # (B,)

    @property
    def r_l(self) -> Tensor:
        return self.rejected - constant_beside(self.reference_rejected, self.rejected)  # (B,)

    @property
    def n_w(self) -> Array:
        return constant_beside(self.chosen_lengths, self.chosen)  # (B,)

    @property
    def n_l(self) -> Array:
        return constant_beside(self.rejected_lengths, self.rejected)  # (B,)

    @property
    def d(self) -> Tensor:
        return self.r_w - self.r_l  # (B,)


@dataclass(frozen=True)
class PreferenceSettings:
    """Numbers in the formulas."""

    beta: float = 0.1  # how fast the loss falls with the difference; a larger one keeps the policy nearer the reference
    label_smoothing: float = 0.0  # e, the share of pairs whose answers are the wrong way round
    gamma: float = 0.5  # simpo: the margin by which the chosen answer should win
    tau: float = 0.05  # discopop: how sharply one formula follows the other

    def __post_init__(self) -> None:
        for name in ("beta", "tau"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"preference_loss: {name} is {getattr(self, name)}; give a number above 0")
        if not 0 <= self.label_smoothing <= 1:
            raise InputError(
                f"preference_loss: label_smoothing is {self.label_smoothing}; give a share from 0 to 1, best below 0.5"
            )


def sigmoid(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """DPO: -log s(beta d). Start: ln 2, -beta/2, beta/2. Rafailov et al. 2023 (arXiv:2305.18290), equation 7."""
    return -ops.logsigmoid(s.beta * pairs.d)


def conservative(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """-(1 - e) log s(beta d) - e log s(-beta d): a share e of the pairs is labelled wrongly.

    Start: ln 2, -+beta (1 - 2e)/2. Mitchell 2023, "A note on DPO with noisy preferences".
    """
    x, e = s.beta * pairs.d, s.label_smoothing
    return -(1 - e) * ops.logsigmoid(x) - e * ops.logsigmoid(-x)


def robust(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """[-(1 - e) log s(beta d) + e log s(-beta d)] / (1 - 2e), whose mean over wrong labels is DPO's loss.

    Start: ln 2, -+beta/(2 (1 - 2e)). Ray Chowdhury et al. 2024 (arXiv:2403.00409).
    """
    e = s.label_smoothing
    if not e < 0.5:
        raise InputError(f"preference_loss: robust has label_smoothing {e}; give a share below 0.5")
    x = s.beta * pairs.d
    return (e * ops.logsigmoid(-x) - (1 - e) * ops.logsigmoid(x)) / (1 - 2 * e)


def hinge(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """max(0, 1 - beta d). Start: 1, -+beta. Zhao et al. 2023 (arXiv:2305.10425); Liu et al. 2023 (arXiv:2309.06657)."""
    return ops.relu(1 - s.beta * pairs.d)


def ipo(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """(m_w - m_l - 1/(2 beta))^2 with the means per token m = r/n, to which the authors' results refer.

    Start: 1/(4 beta^2), -1/(beta n_w), 1/(beta n_l). Azar et al. 2023 (arXiv:2310.12036), equation 17.
    """
    m_w, m_l = pairs.r_w / pairs.n_w, pairs.r_l / pairs.n_l
    return (m_w - m_l - 1 / (2 * s.beta)) ** 2


def sigmoid_norm(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """DPO normalised by length: -log s(beta (m_w - m_l)) with m = r/n.

    Start: ln 2, -beta/(2 n_w), beta/(2 n_l). Lambert et al. 2024 (arXiv:2411.15124).
    """
    m_w, m_l = pairs.r_w / pairs.n_w, pairs.r_l / pairs.n_l
    return -ops.logsigmoid(s.beta * (m_w - m_l))


def reference_free(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """-log s(beta (log p(chosen) - log p(rejected))): DPO with a reference that finds all answers equally likely.

    It is CPO's preference term (Xu et al. 2024, arXiv:2401.08417, equation 3). Start: as likely as the answers are.
    """
    return -ops.logsigmoid(s.beta * (pairs.chosen - pairs.rejected))


def simpo(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """-log s(beta (m_w - m_l) - gamma) with m = log p/n, without a reference.

    Start: as likely as the answers are. Meng et al. 2024 (arXiv:2405.14734), equation 6; the paper uses a beta of 2 to
    2.5 and a gamma of 0.3 to 0.5 of it.
    """
    m_w, m_l = pairs.chosen / pairs.n_w, pairs.rejected / pairs.n_l
    return -ops.logsigmoid(s.beta * (m_w - m_l) - s.gamma)


def orpo(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """-beta log s(log odds(chosen) - log odds(rejected)), where log odds = m - log(1 - e^m) and m = log p/n.

    ORPO adds the cross-entropy of prompt and chosen answer, which is no function of log p; the task does that.
    d log odds/dm = 1/(1 - e^m). Start: as likely as the answers are. Hong et al. 2024 (arXiv:2403.07691), equations 4
    and 7.
    """
    odds_w = log_odds(pairs.chosen / pairs.n_w)
    odds_l = log_odds(pairs.rejected / pairs.n_l)
    return -s.beta * ops.logsigmoid(odds_w - odds_l)


def log_odds(m: Tensor) -> Tensor:
    """log(p/(1 - p)) with m = log p, of at most 1 - 1e-7, because certainty has infinite odds and no derivative."""
    m = ops.minimum(m, -1e-7)
    return m - ops.log(-ops.expm1(m))  # -expm1(m) = 1 - e^m keeps its digits where m is near 0


def exo_pair(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """The divergence KL(policy || labels) of the preferences s(beta d) and 1 - e.

    s(x) (log s(x) - log(1 - e)) + s(-x) (log s(-x) - log e) with x = beta d and e of some 1e-3.
    Start: -ln 2 - ln(e (1 - e))/2, -+beta/4 ln((1 - e)/e). Ji et al. 2024 (arXiv:2402.00856), equation 16.
    """
    e = s.label_smoothing
    if not 0 < e < 1:
        raise InputError(f"preference_loss: exo_pair has label_smoothing {e}; give a share above 0, such as 1e-3")
    x = s.beta * pairs.d
    chosen = ops.sigmoid(x) * (ops.logsigmoid(x) - math.log1p(-e))
    return chosen + ops.sigmoid(-x) * (ops.logsigmoid(-x) - math.log(e))


def nca_pair(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """-log s(beta r_w) - 1/2 log s(-beta r_w) - 1/2 log s(-beta r_l), so that r_w itself does not fall.

    Start: 2 ln 2, -+beta/4. Chen et al. 2024 (arXiv:2402.05369).
    """
    x_w, x_l = s.beta * pairs.r_w, s.beta * pairs.r_l
    return -ops.logsigmoid(x_w) - 0.5 * ops.logsigmoid(-x_w) - 0.5 * ops.logsigmoid(-x_l)


def sppo_hard(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """(r_w - 1/(2 beta))^2 + (r_l + 1/(2 beta))^2: the chosen answer always wins.

    Start: 1/(2 beta^2), -+1/beta. Wu et al. 2024 (arXiv:2405.00675), equation 4.7.
    """
    return (pairs.r_w - 0.5 / s.beta) ** 2 + (pairs.r_l + 0.5 / s.beta) ** 2


def apo_zero(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """1 - s(beta r_w) + s(beta r_l), where chosen answers are better than the model's own.

    Start: 1, -+beta/4. D'Oosterlinck et al. 2024 (arXiv:2408.06266), equation 7.
    """
    return 1 - ops.sigmoid(s.beta * pairs.r_w) + ops.sigmoid(s.beta * pairs.r_l)


def apo_down(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """s(beta r_w) + 1 - s(beta d), where even chosen answers are worse than the model's own.

    Start: 1, 0, beta/4. D'Oosterlinck et al. 2024 (arXiv:2408.06266), equation 8.
    """
    return ops.sigmoid(s.beta * pairs.r_w) + 1 - ops.sigmoid(s.beta * pairs.d)


def discopop(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """-(1 - g) log s(x) + g e^-x with x = beta d and g = s(x/tau), which a search over programs has found.

    Start: (1 + ln 2)/2, +-beta ((1 - ln 2)/(4 tau) - 3/4): for a small tau the loss first rises with d.
    Lu et al. 2024 (arXiv:2406.08414), equation 5.
    """
    x = s.beta * pairs.d
    g = ops.sigmoid(x / s.tau)
    return ops.exp(-x) * g - ops.logsigmoid(x) * (1 - g)


def bco_pair(pairs: Pairs, s: PreferenceSettings) -> Tensor:
    """-log s(beta r_w) - log s(-beta r_l). Start: 2 ln 2, -+beta/2. Jung et al. 2024 (arXiv:2404.04656)."""
    return -ops.logsigmoid(s.beta * pairs.r_w) - ops.logsigmoid(-s.beta * pairs.r_l)


PREFERENCE_LOSSES: dict[str, Callable[[Pairs, PreferenceSettings], Tensor]] = {
    loss.__name__: loss
    for loss in (
        *(sigmoid, conservative, robust, hinge, ipo, sigmoid_norm, reference_free, simpo, orpo),
        *(exo_pair, nca_pair, sppo_hard, apo_zero, apo_down, discopop, bco_pair),
    )
}
WITHOUT_REFERENCE = ("reference_free", "simpo", "orpo")


def preference_loss(pairs: Pairs, loss: str = "sigmoid", **settings: float) -> Tensor:
    """The loss of each pair, by a formula of `PREFERENCE_LOSSES`; the loss of a batch is the mean.

    Shapes: every array of the pairs (B,); result (B,).
    Units: nats for the losses made of log s; other losses have none.
    settings: those of PreferenceSettings, such as beta.
    Raises: ShapeError; InputError for an unknown loss, or a setting that the formula cannot use.
    """
    if loss not in PREFERENCE_LOSSES:
        raise InputError(f"preference_loss: there is no loss {loss!r}{did_you_mean(loss, PREFERENCE_LOSSES)}")
    given = {name: ("B", array) for name, array in pairs._asdict().items() if not isinstance(array, float)}
    check_shapes("preference_loss", **given)
    return PREFERENCE_LOSSES[loss](pairs, PreferenceSettings(**settings))


# --- KTO, for single answers that are good or bad ------------------------------------------------------------------


def kto_reference_point(mismatched: Any) -> float:
    """z = max(0, mean of r), with which KTO compares; r are log-ratios of answers to prompts that are not their own.

    It estimates how far the policy is from the reference, KL(policy || reference), and has no gradient.
    Shapes: mismatched (B,), log p - log p_ref.
    """
    mismatched = mismatched.data if isinstance(mismatched, Tensor) else mismatched
    return max(0.0, float(mismatched.mean()))


def kto_loss(
    log_ratios: Tensor,
    desirable: Array,
    reference_point: Any,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """The loss of each answer: w (1 - s(beta (r - z))) of a desirable one, w (1 - s(beta (z - r))) of an undesirable.

    With r = log p - log p_ref, and z from `kto_reference_point`. Start: w/2, and the derivative by r is -w beta/4 for
    desirable answers, w beta/4 for the others. The paper's advice: choose the weights so that those of all desirable
    answers, added up, are 1 to 4/3 times those of the undesirable.
    Shapes: log_ratios and desirable (B,), truth values; reference_point () or (B,); result (B,).
    Raises: ShapeError; InputError for a beta that is not above 0.
    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), equation 7.
    """
    if not beta > 0:
        raise InputError(f"kto_loss: beta is {beta}; give a number above 0")
    check_shapes("kto_loss", log_ratios=("B", log_ratios), desirable=("B", desirable))
    good = constant_beside(desirable, log_ratios)  # (B,), 1 or 0
    weights = desirable_weight * good + undesirable_weight * (1 - good)  # (B,)
    better = (log_ratios - constant_beside(reference_point, log_ratios)) * (2 * good - 1)  # (B,)
    return ops.sigmoid(-beta * better) * weights
