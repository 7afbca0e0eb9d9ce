import numpy as np


def causal_mask(queries, keys, padding=0):
    visible = np.zeros((queries, keys), bool)
    for i in range(queries):
        visible[i, padding : i + keys - queries + 1] = True
    return visible
