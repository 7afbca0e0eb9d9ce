import numpy as np


def embedding_backward(dy, ids, rows, padding=None):
    dweight = np.zeros((rows, dy.shape[-1]))
    for i, gradient in zip(ids.reshape(-1), dy.reshape(-1, dy.shape[-1]), strict=True):
        if padding is None or i != padding:
            dweight[i] += gradient
    return dweight
