"""Remedies for a NaN or an infinity, by the operation that made it."""

from __future__ import annotations

LOGARITHM = "the logarithm of 0 is -inf, and of a negative number NaN: add a small eps, or use ops.log_softmax"
EXPONENTIAL = (
    "e^x is infinite above 88 in float32 (above 11 in float16): subtract the largest x first, as ops.softmax does"
)
DIVISION = "the divisor is 0 somewhere: add a small eps to it, or choose with ops.where before dividing"
ROOT = "the root of a negative number is NaN: limit its input with ops.clip, or add a small eps"
PRODUCT = "the numbers have grown too large: lower the learning rate, clip gradients, or normalise what comes in"

FORWARD = {
    **dict.fromkeys(["log", "log2", "log10", "log1p"], LOGARITHM),
    **dict.fromkeys(["exp", "expm1", "softplus"], EXPONENTIAL),
    **dict.fromkeys(["div", "remainder"], DIVISION),
    "sqrt": ROOT,
    "pow": "a negative number to a fraction is NaN, 0 to a negative power infinite: limit the base with ops.clip",
    "softmax": "a row is nothing but -inf: a mask hides every entry; leave one open, or leave such rows out",
    "log_softmax": "a row is nothing but -inf: a mask hides every entry; leave one open, or leave such rows out",
    "attention": "a mask hides every key of a query, or scores are too large: leave one key open, lower the rate",
    "cross_entropy": "logits are infinite, or the target's logit is -inf: the model must be able to give the target",
    "sub": "infinity minus infinity is NaN: look at the line that made the infinities",
    "mul": "0 times infinity is NaN, and large numbers overflow: choose with ops.where, do not multiply by a mask",
    "layernorm": "numbers have grown too large to square, or eps is 0 and a row is constant: give an eps",
    "rmsnorm": "numbers have grown too large to square, or eps is 0 and a row is 0: give an eps",
    "std": "the standard deviation of one number (unbiased) is 0/0: give two or more, or unbiased=False",
    "var": "the variance of one number (unbiased) is 0/0: give two or more, or unbiased=False",
    "mean": "a mean of no elements is 0/0: look at the shape",
    **dict.fromkeys(
        ["matmul", "linear", "frozen_linear", "einsum", "sum", "add", "cumsum", "prod", "cumprod"], PRODUCT
    ),
    "to": "a float16 holds numbers up to 65504: scale them first, or use bfloat16 or float32",
}
THROUGH_WHERE = "; ops.where(condition, x / y, 0) does not help, as the backward computes both sides: mend y first"
BACKWARD = {
    **dict.fromkeys(
        ["log", "log2", "log10", "log1p"], "the slope of log x is 1/x, infinite at 0: add a small eps to x"
    ),
    "sqrt": "the slope of a root is infinite at 0: write (x + eps).sqrt()",
    "pow": "the slope of x^a for a below 1 is infinite at x = 0: add a small eps to x",
    "div": DIVISION + THROUGH_WHERE,
    **dict.fromkeys(["exp", "expm1"], EXPONENTIAL),
    "mul": "0 times infinity is NaN: the other factor is infinite, or the gradient that arrives is",
    **dict.fromkeys(["matmul", "linear", "frozen_linear", "einsum", "add", "sum"], PRODUCT),
}
OTHERWISE = (
    "look at the statistics above: the largest numbers say whether something has grown, zeros what is divided by"
)


def remedy(op: str, half: str) -> str:
    """A sentence about an operation; `half` is forward or backward."""
    return (FORWARD if half == "forward" else BACKWARD).get(op, OTHERWISE)
