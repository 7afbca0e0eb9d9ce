import numpy as np


def adamw_step(w, g, m, v, t, lr, betas, eps, weight_decay):
    m = m + (1 - betas[0]) * (g - m)
    v = v + (1 - betas[1]) * (g * g - v)
    step = lr / (1 - betas[0] ** t) * m / (np.sqrt(v) / np.sqrt(1 - betas[1] ** t) + eps)
    return w - lr * weight_decay * w - step, m, v
