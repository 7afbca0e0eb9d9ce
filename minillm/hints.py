"""Hints for names of PyTorch and NumPy that do not exist here: each with the expression to write instead.

A Tensor or a module that lacks such a name raises NoSuchNameError with the line from these tables, or with the nearest
names that exist. It is an AttributeError, so `hasattr` and `getattr` with a default work as usual; its text is made
only when it is read, so that `hasattr` stays fast.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

import numpy as np

from minillm.errors import NoSuchNameError

# A test runs each of these, with x and y of shape (2, 2), an array a of increasing numbers, and a number n.
EXPRESSIONS = {
    "short": "x.to('int16')",
    "char": "x.to('int8')",
    "byte": "x.to('uint8')",
    "type": "x.to('float32')",
    "astype": "x.to('float32')",
    "type_as": "x.to(y.dtype)",
    "cpu": "x.to('cpu')",
    "get_device": "x.device",
    "is_cuda": "x.device != 'cpu'",
    "is_cpu": "x.device == 'cpu'",
    "is_floating_point": "x.dtype.kind not in 'iub'",
    "is_nonzero": "bool(x.any())",
    "dim": "x.ndim",
    "ndimension": "x.ndim",
    "nelement": "x.numel()",
    "element_size": "x.data.itemsize",
    "itemsize": "x.data.itemsize",
    "nbytes": "x.data.nbytes",
    "stride": "x.data.strides",
    "strides": "x.data.strides",
    "flags": "x.data.flags",
    "is_contiguous": "x.data.flags.c_contiguous",
    "storage": "x.data",
    "untyped_storage": "x.data",
    "tobytes": "x.numpy().tobytes()",
    "copy": "minillm.tensor(x.detach())",
    "new_zeros": "minillm.tensor(np.zeros(3), dtype=x.dtype)",
    "new_ones": "minillm.tensor(np.ones(3), dtype=x.dtype)",
    "new_full": "minillm.tensor(np.full(3, n), dtype=x.dtype)",
    "new_empty": "minillm.tensor(np.empty(3), dtype=x.dtype)",
    "new_tensor": "minillm.tensor(a, dtype=x.dtype)",
    "H": "x.mT",
    "mH": "x.mT",
    "adjoint": "x.mT",
    "tensor_split": "x.split([1, 1])",
    "split_with_sizes": "x.split([1, 1])",
    "argwhere": "np.argwhere(x.numpy())",
    "msort": "x.sort(0).values",
    "unique": "np.unique(x.numpy())",
    "unique_consecutive": "a[np.insert(a[1:] != a[:-1], 0, True)]",
    "bincount": "np.bincount(i)",
    "histc": "np.histogram(x.numpy())",
    "histogram": "np.histogram(x.numpy())",
    "searchsorted": "np.searchsorted(a, x.numpy())",
    "quantile": "np.quantile(x.numpy(), 0.5)",
    "kthvalue": "np.partition(x.numpy(), 1)",
    "mode": "np.unique(x.numpy(), return_counts=True)",
    "isin": "np.isin(x.numpy(), a)",
    "positive": "+x",
    "negative": "-x",
    "multiply": "x * y",
    "divide": "x / y",
    "true_divide": "x / y",
    "subtract": "x - y",
    "greater": "x > y",
    "greater_equal": "x >= y",
    "less": "x < y",
    "less_equal": "x <= y",
    "not_equal": "x != y",
    "sinh": "(x.exp() - (-x).exp()) / 2",
    "cosh": "(x.exp() + (-x).exp()) / 2",
    "xlogy": "x * y.log()",
    "hypot": "(x * x + y * y).sqrt()",
    "addcmul": "x + n * y * y",
    "addcdiv": "x + n * y / y",
    "nan_to_num": "ops.where(x.isnan(), 0.0, x)",
    "nansum": "ops.where(x.isnan(), 0.0, x).sum()",
    "nanmean": "ops.where(x.isnan(), 0.0, x).sum() / (~x.isnan()).sum()",
    "diff": "x[1:] - x[:-1]",
    "dist": "((x - y) ** 2).sum().sqrt()",
    "sgn": "x.sign()",
    "fix": "x.trunc()",
    "frac": "x - x.trunc()",
    "inner": "x @ y.T",
    "vdot": "(x * y).sum()",
    "ger": "x[:, 0][:, None] * y[0]",
    "kron": "np.kron(x.numpy(), y.numpy())",
    "detach_": "x.detach()",
    "grad_dtype": "x.dtype",
    "output_nr": "x.index",
    "numpy_": "x.numpy()",
    "select_scatter": "ops.where(minillm.tensor([[True], [False]]), y, x)",
    "fmax": "ops.where(x > y, x, y)",
    "fmin": "ops.where(x < y, x, y)",
    "float_power": "x.to('float64') ** y",
    "deg2rad": "x * (np.pi / 180)",
    "rad2deg": "x * (180 / np.pi)",
    "aminmax": "(x.numpy().min(), x.numpy().max())",
    "isposinf": "x == np.inf",
    "isneginf": "x == -np.inf",
    "fliplr": "x[:, ::-1]",
    "flipud": "x[::-1]",
    "rot90": "x.T[::-1]",
    "copysign": "ops.where(y < 0, -abs(x), abs(x))",
    "prelu": "ops.where(x > 0, x, n * x)",
    "where": "ops.where(x > 0, x, y)",
    "sinc": "np.sinc(x.numpy())",
    "is_same_size": "x.shape == y.shape",
    "addmv": "x + x @ y[0]",
    "addbmm": "x + x @ y",
    "cov": "np.cov(x.numpy())",
    "diag_embed": "x[..., None] * np.eye(2, dtype=np.float32)",
    "unsafe_split": "x.split(1)",
    "unsafe_chunk": "x.split(1)",
    "vsplit": "x.split(1)",
    "hsplit": "x.split(1, dim=1)",
    "fmod": "x - y * (x / y).trunc()",
}
# What one expression does not say.
REMARKS = {
    "cuda": "x.to('cuda')",
    "data_ptr": "x.data.ctypes.data",
    "unfold": "x[window] with an array of indices, window[i, j] = i + j",
    "resize_": "x = x.reshape(...)",
    "fill_diagonal_": "x[i, i] = value, under minillm.no_grad()",
    "index_copy": "ops.where(mask, y, x), or x[i] = y under minillm.no_grad()",
    "index_fill": "ops.where(mask, n, x), or x[i] = n under minillm.no_grad()",
    "index_put": "ops.where(mask, y, x), or x[i] = y under minillm.no_grad()",
    "index_put_": "x[i] = y under minillm.no_grad(), or x = ops.where(mask, y, x)",
    "masked_scatter": "ops.where(mask, y, x), or x[mask] = y under minillm.no_grad()",
    "bitwise_or": "x | y",
    "bitwise_xor": "x ^ y",
    "bitwise_not": "~x",
    "tensordot": "ops.einsum, or reshape and @",
    "retains_grad": "x.grad is not None after backward",
    "register_post_accumulate_grad_hook": "x.register_hook(hook), which gets the gradient before it is added to x.grad",
    "next_functions": "x.node.edges",
    "pin_memory": "nothing: batches to a GPU pass through page-locked memory already",
    "share_memory_": "minillm.parallel.shared_memory, whose ranks share arrays",
    "apply_": "a function of x.data, before the forward",
    "map_": "a function of x.data and y.data, before the forward",
    "bitwise_and": "x & y",
    "det": "np.linalg.det(x.numpy()), which has no gradient",
    "inverse": "np.linalg.inv(x.numpy()), which has no gradient",
    "pinverse": "np.linalg.pinv(x.numpy()), which has no gradient",
    "svd": "np.linalg.svd(x.numpy()), which has no gradient",
    "qr": "np.linalg.qr(x.numpy()), which has no gradient",
    "cholesky": "np.linalg.cholesky(x.numpy()), which has no gradient",
    "slogdet": "np.linalg.slogdet(x.numpy()), which has no gradient",
    "logdet": "np.linalg.slogdet(x.numpy()), which has no gradient",
    "eig": "np.linalg.eig(x.numpy()), which has no gradient",
    "matrix_power": "np.linalg.matrix_power(x.numpy()), which has no gradient",
    "random_": "x.copy_(rng.integers(low, high, x.shape)), with rng = np.random.default_rng(seed)",
    "put_": "x[i] = y under minillm.no_grad()",
}
# Functions of PyTorch's modules, which here are minillm's, minillm.ops', or not there.
FUNCTIONS = {
    "asarray": "minillm.tensor(data)",
    "is_tensor": "isinstance(x, minillm.Tensor)",
    "numel": "x.numel()",
    "logspace": "minillm.tensor(np.logspace(start, stop, n, dtype=np.float32))",
    "meshgrid": "np.meshgrid(..., indexing='ij')",
    "row_stack": "minillm.ops.concat(tensors, dim=0)",
    "column_stack": "minillm.ops.stack(tensors, dim=1), for vectors",
    "scaled_dot_product_attention": "minillm.ops.attention(q, k, v, causal=...)",
    "multi_head_attention_forward": "minillm.nn.SelfAttention or minillm.nn.CrossAttention",
    "rmsnorm": "minillm.ops.rms_norm(x, weight)",
    "layernorm": "minillm.ops.layer_norm(x, weight, bias)",
    "nll_loss": "minillm.ops.cross_entropy(logits, targets), of the logits before log_softmax",
    "binary_cross_entropy": "-(t * p.log() + (1 - t) * (1 - p).log()).mean()",
    "binary_cross_entropy_with_logits": "(ops.relu(x) - x * t + (1 + (-abs(x)).exp()).log()).mean()",
    "l1_loss": "abs(x - y).mean()",
    "smooth_l1_loss": "ops.where(abs(d) < 1, d * d / 2, abs(d) - 0.5).mean(), with d = x - y",
    "huber_loss": "ops.where(abs(d) < 1, d * d / 2, abs(d) - 0.5).mean(), with d = x - y",
    "kl_div": "(p * (p.log() - log_q)).mean()",
    "cosine_similarity": "(x * y).sum(-1) / ((x * x).sum(-1) * (y * y).sum(-1)).sqrt()",
    "normalize": "x / (x * x).sum(-1, keepdims=True).sqrt()",
    "elu": "ops.where(x > 0, x, x.exp() - 1)",
    "relu6": "x.clip(0, 6)",
    "hardtanh": "x.clip(-1, 1)",
    "hardsigmoid": "(x / 6 + 0.5).clip(0, 1)",
    "hardswish": "x * (x / 6 + 0.5).clip(0, 1)",
    "softmin": "ops.softmax(-x)",
    "softsign": "x / (1 + abs(x))",
    "mish": "x * (1 + x.exp()).log().tanh()",
    "glu": "a * b.sigmoid(), with a, b = x.split(x.shape[-1] // 2, dim=-1)",
    "int8": "np.int8, or 'int8'",
    "dtype": "np.dtype; names such as 'float32' do too",
    "bfloat16": "'bfloat16', as in x.to('bfloat16')",
    "device": "the name alone, such as 'cpu' or 'cuda:0'",
    "cuda": "device='cuda', or model.to('cuda')",
    "save": "model.save_pretrained(folder), or minillm.checkpoint",
    "autocast": "model.to('cuda', 'bfloat16')",
    "compile": "nothing: remove it",
    "jit": "nothing: remove it",
    "vmap": "a leading axis: operations broadcast over it",
    "functional": "minillm.ops",
    "utils": "minillm.optim.clip_grad_norm_, minillm.data.Batches",
    "distributed": "minillm.parallel",
    "get_rng_state": "minillm.random.default.state()",
    "set_rng_state": "minillm.random.default.set_state(state)",
    "set_default_dtype": "model.to(dtype), and dtype= of each tensor",
    "set_num_threads": "the environment variable MINILLM_THREADS",
    "set_printoptions": "np.set_printoptions",
    "finfo": "np.finfo",
    "iinfo": "np.iinfo",
    "Size": "tuple",
    "FloatTensor": "minillm.tensor(data)",
    "LongTensor": "minillm.tensor(data)",
    "Generator": "minillm.manual_seed(seed)",
    "dstack": "minillm.ops.stack(tensors, dim=2), for matrices",
    "atleast_1d": "x.reshape(1), of a number",
    "atleast_2d": "x[None], of a vector",
    "cartesian_prod": "np.meshgrid(..., indexing='ij')",
    "bucketize": "np.searchsorted(boundaries, x.numpy())",
    "cdist": "((x[:, None] - y[None]) ** 2).sum(-1).sqrt()",
    "pairwise_distance": "((x - y) ** 2).sum(-1).sqrt()",
    "dropout1d": "minillm.ops.dropout(x, p)",
    "embedding_bag": "minillm.ops.embedding(ids, weight).mean(1)",
    "gumbel_softmax": "minillm.ops.softmax(x + noise), with noise = rng.gumbel(size=x.shape)",
    "selu": "1.0507 * ops.where(x > 0, x, 1.6733 * (x.exp() - 1))",
    "celu": "ops.where(x > 0, x, x.exp() - 1)",
    "threshold": "ops.where(x > n, x, value)",
    "tanhshrink": "x - x.tanh()",
    "normal": "minillm.tensor(rng.normal(mean, std, shape)), with rng = np.random.default_rng(seed)",
    "hinge_embedding_loss": "minillm.ops.relu(margin - x).mean()",
    "group_norm": "minillm.ops.layer_norm of x reshaped to (B, groups, ...)",
    "batch_norm": "minillm.ops.layer_norm or minillm.ops.rms_norm",
    "instance_norm": "minillm.ops.layer_norm",
    "broadcast_shapes": "np.broadcast_shapes",
    "broadcast_tensors": "x.broadcast_to(shape)",
    "result_type": "np.result_type",
    "promote_types": "np.promote_types",
    "pi": "np.pi",
    "e": "np.e",
    "inf": "np.inf",
    "nan": "np.nan",
    "newaxis": "None",
    "load": "minillm.load(folder), of a model",
    "linalg": "np.linalg of x.numpy(), which has no gradient",
    "fft": "np.fft of x.numpy(), which has no gradient",
    "special": "minillm.ops",
    "int16": "np.int16, or 'int16'",
    "numpy": "import numpy as np",
    "profiler": "minillm.study.profile",
    "seed": "minillm.manual_seed(seed)",
    "initial_seed": "minillm.random.default.state()",
    "get_num_threads": "minillm.backend.cutting.threads",
    "get_default_dtype": "np.float32",
    "use_deterministic_algorithms": "nothing: remove it; results are the same from run to run",
    "set_float32_matmul_precision": "nothing: remove it; float32 is not rounded to TF32",
}
# Kinds of names that have no counterpart.
KINDS = {
    r"conv|pool|grid_sample|interpolate|upsample|pixel_|affine_grid|^fold$|channel_": "there are no convolutions: the "
    "models here are of text",
    r"^(lstm|gru|rnn)|_lstm|_gru|_rnn": "there are no recurrent layers: the models here are transformers",
    r"sparse|coalesce|(crow|ccol|col|row)_indices": "all tensors are dense",
    r"quant|^q_|^qint|^quint|int_repr|qscheme": "nothing is quantised",
    r"complex|conj|^(c|ch)(double|float|half)|^(real|imag|angle|polar)$": "there are no complex numbers",
    r"^is_": "there is nothing of this kind: it is False of every tensor",
    r"^(cudnn|miopen|mkldnn|fbgemm|mtia|mps|xpu|ipu)": "there are CPUs, and NVIDIA GPUs under the name 'cuda'",
    r"autocast|^amp$": "write model.to('cuda', 'bfloat16'), whose sums are made in float32",
}
# NumPy's functions, where ours has another name, or other results under the same name. Each that is an expression of x
# and y alone is tried by a test, with the array that NumPy's function gives.
NUMPY = {
    "where": "minillm.ops.where(condition, x, y)",
    "einsum": "minillm.ops.einsum(equation, x, y)",
    "pad": "minillm.ops.pad(x, (before, after)), of the last axis",
    "take": "x.take(index), or x.index_select(axis, index)",
    "take_along_axis": "x.take_along_dim(index, axis)",
    "concatenate": "minillm.ops.concat(tensors)",
    "append": "minillm.ops.concat(tensors, dim=axis)",
    "insert": "minillm.ops.concat(tensors, dim=axis), of pieces",
    "block": "minillm.ops.concat(tensors, dim=axis)",
    "stack": "minillm.ops.stack(tensors)",
    "vstack": "minillm.ops.vstack(tensors)",
    "hstack": "minillm.ops.hstack(tensors)",
    "dstack": "minillm.ops.stack(tensors, dim=2)",
    "column_stack": "minillm.ops.hstack(tensors), or minillm.ops.stack([x, y], dim=1) of vectors",
    "dot": "x @ y",
    "inner": "x @ y.T",
    "vdot": "(x * y).sum()",
    "vecdot": "(x * y).sum(-1)",
    "outer": "x.flatten()[:, None] * y.flatten()",
    "tensordot": "minillm.ops.einsum(equation, x, y)",
    "transpose": "x.T, or x.permute(axes)",
    "matrix_transpose": "x.mT",
    "swapaxes": "x.transpose(axis1, axis2)",
    "expand_dims": "x.unsqueeze(axis)",
    "atleast_1d": "x, or x.reshape(1) of a number",
    "atleast_2d": "x, or x[None] of a vector",
    "split": "x.chunk(n), or x.split(sizes)",
    "array_split": "x.chunk(n), or x.split(sizes)",
    "unstack": "x.unbind()",
    "repeat": "x.repeat_interleave(n)",
    "compress": "x[mask]",
    "extract": "x[mask]",
    "choose": "minillm.ops.where(condition, x, y)",
    "select": "minillm.ops.where(condition, x, y)",
    "average": "x.mean(axis)",
    "max": "x.amax(axis)",
    "min": "x.amin(axis)",
    "ptp": "x.amax() - x.amin()",
    "var": "x.var(unbiased=False)",
    "std": "x.std(unbiased=False)",
    "sort": "x.sort().values",
    "unique": "x.sort().values",
    "median": "x.median(), which takes the lower of two middle elements",
    "nansum": "minillm.ops.where(x.isnan(), 0.0, x).sum()",
    "nanmean": "minillm.ops.where(x.isnan(), 0.0, x).sum() / (~x.isnan()).sum()",
    "norm": "x.norm()",
    "linalg.norm": "x.norm()",
    "flip": "x.flip(axes)",
    "fliplr": "x.flip(1)",
    "flipud": "x.flip(0)",
    "diff": "x[..., 1:] - x[..., :-1]",
    "copy": "x.clone()",
    "nan_to_num": "minillm.ops.where(x.isnan(), 0.0, x)",
    "astype": "x.to(dtype)",
    "hypot": "(x * x + y * y).sqrt()",
}


def missing_method(name: str, kind: type) -> AttributeError:
    """The error for an attribute that instances of a class do not have."""
    if name.startswith("_"):  # asked for by libraries, not by people
        return AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")

    def sentence() -> str:
        known = [one for one in dir(kind) if not one.startswith("_")]
        return f"{kind.__name__} has no `{name}`{_instead(name, known, 'x.', EXPRESSIONS, REMARKS, FUNCTIONS)}"

    return NoSuchNameError(name, sentence)


def missing_function(name: str, module: str, known: Collection[str], kind: type) -> AttributeError:
    """The error for a name that a module does not have; `known` are those of minillm.ops, `kind` is Tensor."""
    if name.startswith("_"):
        return AttributeError(f"module {module!r} has no attribute {name!r}")

    def sentence() -> str:
        if name in known:
            return f"{module} has no `{name}`; write minillm.ops.{name}"
        tables = FUNCTIONS, EXPRESSIONS, REMARKS
        if hasattr(kind, name) and not any(name in table for table in tables):
            what = (
                f"a method: write x.{name}(...)" if callable(getattr(kind, name)) else f"an attribute: write x.{name}"
            )
            return f"{module} has no `{name}`; it is {what}"
        return f"{module} has no `{name}`{_instead(name, known, 'minillm.ops.', *tables)}"

    return NoSuchNameError(name, sentence)


def numpy_instead(name: str, kind: type) -> str:
    """The hint for a function of NumPy: `; write minillm.ops.concat(tensors)`."""
    if name in NUMPY:
        return f"; write {NUMPY[name]}"
    if hasattr(kind, name):
        return f"; write x.{name}(...)"
    text = EXPRESSIONS.get(name) or REMARKS.get(name)
    return f"; write {text}" if text else ""


def _instead(name: str, known: Collection[str], prefix: str, *tables: dict[str, str]) -> str:
    """The rest of the sentence: from the tables, by the kind of name, or the nearest names."""
    for table in tables:
        if name in table:
            return f"; write {table[name]}"
    base = name.rstrip("_")
    if base != name:
        texts = [table[base] for table in tables if base in table]
        instead = f"x = {prefix}{base}(...), or x[...] = values" if base in known else texts[0] if texts else None
        if instead:
            return f"; nothing is changed in place under this name: write {instead}"
    for pattern, sentence in KINDS.items():
        if re.search(pattern, name):
            return f"; {sentence}"
    if callable(getattr(np, base, None)):
        return f"; write np.{base}(x.numpy()), which has no gradient"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    where = "minillm.Tensor" if prefix == "x." else "minillm.ops"
    return f"; the nearest names are {', '.join(near)}" if near else f"; dir({where}) lists those that there are"
