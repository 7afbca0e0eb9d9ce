import numpy as np


def attention_backward(dy, q, k, v, p, scale):
    dv = np.einsum("hij,hid->hjd", p, dy)
    dp = np.einsum("hid,hjd->hij", dy, v)
    ds = p * (dp - np.einsum("hij,hij->hi", p, dp)[:, :, None])
    return scale * np.einsum("hij,hjd->hid", ds, k), scale * np.einsum("hij,hid->hjd", ds, q), dv
