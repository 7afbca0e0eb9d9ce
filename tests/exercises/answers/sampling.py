import numpy as np


def probabilities(logits, temperature, top_k, top_p):
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:top_k]
    weights = {i: float(np.exp((logits[i] - logits.max()) / temperature)) for i in order}
    total = sum(weights.values())
    kept, mass = [], 0.0
    for i in order:
        if top_p is not None and mass >= top_p - 1e-12 and kept:
            break
        kept.append(i)
        mass += weights[i] / total
    p = np.zeros(len(logits))
    for i in kept:
        p[i] = weights[i] / total / mass
    return p
