from math import cos, pi


def learning_rate(step, peak, floor, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    if step >= total - 1:
        return floor
    p = (step - warmup) / (total - 1 - warmup)
    return peak * (1 + cos(pi * p)) / 2 + floor * (1 - cos(pi * p)) / 2
