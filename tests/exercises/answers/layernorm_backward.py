import numpy as np


def layernorm_backward(dy, norm, rstd, weight):
    C = weight.size
    rows, n = dy.reshape(-1, C), norm.reshape(-1, C)
    dnorm = rows * weight
    dx = np.empty_like(rows)
    for i, r in enumerate(rstd.reshape(-1)):
        jacobian = r * (np.eye(C) - 1 / C - np.outer(n[i], n[i]) / C)
        dx[i] = dnorm[i] @ jacobian
    return dx.reshape(dy.shape), (rows * n).sum(0), rows.sum(0)
