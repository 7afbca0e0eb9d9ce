"""Pairs of texts whose Jaccard similarity of 5-word shingles is known exactly, and what is expected of them."""

from __future__ import annotations

from math import sqrt

# Two texts of m shingles, all different, of which the first k are not common: J = (m - k) / (m + k).
PLANTED = {
    0.5: (180, 60),
    0.6: (200, 50),
    0.7: (170, 30),
    0.8: (180, 20),
    0.85: (185, 15),
    0.9: (190, 10),
    0.95: (195, 5),
}
SIGMAS = 4
LETTERS = str.maketrans("0123456789", "abcdefghij")  # all numbers would be one word


def planted_pair(similarity: float, number: int) -> tuple[str, str]:
    """Two texts of different words, the same but for their beginning; those of another number share no word."""
    m, k = PLANTED[similarity]
    words = [f"w{number}x{place}" for place in range(m + 4)]
    other = [f"v{number}x{place}" for place in range(k)] + words[k:]
    return " ".join(words).translate(LETTERS), " ".join(other).translate(LETTERS)


def within(count: int, total: int, probability: float) -> bool:
    """True if a count is where a binomial distribution has it, within SIGMAS standard deviations and one."""
    return abs(count - total * probability) <= SIGMAS * sqrt(total * probability * (1 - probability)) + 1
