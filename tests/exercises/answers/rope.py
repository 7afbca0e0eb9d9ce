import numpy as np


def rope(x, start, base):
    T, D = x.shape[-2:]
    y = np.empty_like(x)
    for t in range(T):
        for i in range(D // 2):
            angle = (start + t) / base ** (2 * i / D)
            x1, x2 = x[..., t, i], x[..., t, i + D // 2]
            y[..., t, i] = x1 * np.cos(angle) - x2 * np.sin(angle)
            y[..., t, i + D // 2] = x1 * np.sin(angle) + x2 * np.cos(angle)
    return y
