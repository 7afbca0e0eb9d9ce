"""The number of tokens that a model wants, and the loss that it will reach: the Chinchilla law, in two fits.

    L(N, D) = E + A / N^alpha + B / D^beta          N parameters, D tokens, L in nats a token

(Hoffmann et al. 2022, arXiv:2203.15556, equation 10). `HOFFMANN` has the constants of their section D.3, `BESIROGLU`
those of a fit to the same runs that found the first one wrong (Besiroglu et al. 2024, arXiv:2404.10102, table 1).
For a budget of C = 6 N D operations the least loss is, setting the derivative along that curve to 0, at

    N = G (C / 6)^(beta / (alpha + beta))      G = (alpha A / (beta B))^(1 / (alpha + beta))      D = C / (6 N)

Hoffmann's approaches 1 and 2, which need no such formula, find N and D growing alike, about 20 tokens a parameter
(their table 3), and so does the second fit. The constants of the first one contradict that: far more tokens.

All of it holds for their data and tokenizer, of which the losses are; another language or tokenizer has another E, A
and B, while a comparison of two plans by the same formula is still a fair guess. More tokens than 20 a parameter
are not wasted: the loss falls further, and the smaller model is cheaper to use (Llama 3 8B saw 1,900 a parameter).
"""

from __future__ import annotations

from typing import NamedTuple

TOKENS_PER_PARAMETER = 20


class Law(NamedTuple):
    """The constants of a fit, and where they are from."""

    source: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """L(N, D), in nats a token."""
        return self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta

    def best(self, flops: float) -> tuple[float, float]:
        """N and D with the least loss for 6 N D operations."""
        both = self.alpha + self.beta
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        parameters = g * (flops / 6) ** (self.beta / both)
        return parameters, flops / (6 * parameters)


HOFFMANN = Law("Hoffmann et al. 2022", 1.69, 406.4, 410.7, 0.34, 0.28)
BESIROGLU = Law("Besiroglu et al. 2024", 1.8172, 482.01, 2085.43, 0.3478, 0.3658)
LAWS = (HOFFMANN, BESIROGLU)
