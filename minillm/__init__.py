"""minillm: a language-model engine from first principles, on NumPy.

import minillm
x = minillm.tensor([[1.0, 2.0]], requires_grad=True)
(x * x).sum().backward()
x.grad                                              # [[2., 4.]]

What minillm.ops has is here too, as in PyTorch: minillm.zeros, minillm.cat, minillm.einsum.
"""

from minillm import ops
from minillm.autograd import Parameter, Tensor, no_grad, tensor
from minillm.hub import load, load_tokenizer
from minillm.ops import *  # noqa: F403
from minillm.random import manual_seed

__all__ = ["Parameter", "Tensor", "load", "load_tokenizer", "manual_seed", "no_grad", "ops", "tensor"]
__version__ = "0.1.0"
