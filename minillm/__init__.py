"""minillm: a language-model engine from first principles, on NumPy.

import minillm
x = minillm.tensor([[1.0, 2.0]], requires_grad=True)
(x * x).sum().backward()
x.grad                                              # [[2., 4.]]
"""

from minillm import nn, ops, optim
from minillm.autograd import Parameter, Tensor, no_grad, tensor
from minillm.hub import load, load_tokenizer
from minillm.random import manual_seed

__all__ = ["Parameter", "Tensor", "load", "load_tokenizer", "manual_seed", "nn", "no_grad", "ops", "optim", "tensor"]
__version__ = "0.1.0"
