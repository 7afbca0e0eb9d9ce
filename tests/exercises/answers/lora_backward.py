def lora(x, w, a, b, alpha, dy):
    s = alpha / a.shape[0]
    h = x @ a.T
    dh = s * (dy @ b)
    return x @ w.T + s * (h @ b.T), dh.T @ x, s * (dy.T @ h), dy @ w + dh @ a
