import numpy as np


def accumulated(gradients, tokens, max_norm):
    total = [0 * x for x in gradients[0]]
    for one, n in zip(gradients, tokens, strict=True):
        total = [x + n * y for x, y in zip(total, one, strict=True)]
    total = [x / sum(tokens) for x in total]
    norm = float(np.linalg.norm(np.concatenate([x.ravel() for x in total])))
    return [x * min(1, max_norm / norm) for x in total], norm
