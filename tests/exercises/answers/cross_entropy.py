import numpy as np


def cross_entropy(logits, targets):
    dlogits = np.zeros_like(logits)
    counted = [i for i, t in enumerate(targets) if t != -100]
    loss = 0.0
    for i in counted:
        row = logits[i] - logits[i].max()
        log_p = row - np.log(np.exp(row).sum())
        loss -= log_p[targets[i]] / len(counted)
        dlogits[i] = np.exp(log_p) / len(counted)
        dlogits[i, targets[i]] -= 1 / len(counted)
    return loss, dlogits
