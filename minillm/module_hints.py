"""Hints for names of torch.nn, torch.optim or modules that do not exist here; hints.py has those for tensors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Any

from minillm.errors import NoSuchNameError
from minillm.hints import FUNCTIONS, KINDS

# Names of PyTorch's modules that modules here do not have.
MODULES = {
    "half": "model.to('float16')",
    "float": "model.to('float32')",
    "double": "model.to('float64')",
    "bfloat16": "model.to('bfloat16')",
    "type": "model.to('float32')",
    "cuda": "model.to('cuda')",
    "cpu": "model.to('cpu')",
    "compile": "nothing: remove it",
    "buffers": "model.parameters(); an array that is not a Parameter is a plain attribute",
    "named_buffers": "model.named_parameters(); an array that is not a Parameter is a plain attribute",
    "register_buffer": "self.name = array; it is not a Parameter, and state_dict leaves it out",
    "register_parameter": "self.name = minillm.nn.Parameter(array)",
    "register_module": "self.name = module",
    "add_module": "self.name = module, or append of a ModuleList",
    "insert": "minillm.nn.ModuleList([...]) of the modules in their new order",
    "get_submodule": "dict(model.named_modules())[path]",
    "get_parameter": "dict(model.named_parameters())[path]",
}
# Classes and parts of torch.nn, torch.optim and torch.autograd.
CLASSES = {
    "MultiheadAttention": "minillm.nn.SelfAttention or minillm.nn.CrossAttention",
    "TransformerEncoderLayer": "the blocks of minillm.models.bert",
    "TransformerDecoderLayer": "the blocks of minillm.models.gpt2",
    "ModuleDict": "a plain dict of modules as an attribute, whose parameters are found",
    "ParameterList": "a plain list of parameters as an attribute, which are found",
    "ParameterDict": "a plain dict of parameters as an attribute, which are found",
    "BCEWithLogitsLoss": FUNCTIONS["binary_cross_entropy_with_logits"],
    "BCELoss": FUNCTIONS["binary_cross_entropy"],
    "KLDivLoss": FUNCTIONS["kl_div"],
    "init": "module.weight.normal_(0, std) under minillm.no_grad()",
    "clip_grad_value_": "parameter.grad.clip(-n, n, out=parameter.grad) for each parameter",
    "Function": "minillm.autograd.Op(name, forward, backward)",
    "gradcheck": "minillm.testing.check_gradients",
    "hessian": "minillm.testing.hvp",
    "RMSprop": "minillm.optim.Adam or minillm.optim.AdamW",
    "Adagrad": "minillm.optim.Adam or minillm.optim.AdamW",
    "Lion": "minillm.optim.AdamW, or a subclass of minillm.optim.Optimizer with an update method",
    "OneCycleLR": "minillm.optim.lr_scheduler.WarmupCosineLR",
    "SequentialLR": "minillm.optim.lr_scheduler.LambdaLR(optimizer, factor_of_step)",
    "ReduceLROnPlateau": 'optimizer.lr = optimizer.lr / 10 (or group["lr"] of a param_group) where the loss stays',
}


def missing_part(name: str, module: str, known: Collection[str], functions: Collection[str]) -> AttributeError:
    """The error for a name that minillm.nn or minillm.optim does not have; `functions` are those of minillm.ops."""
    if name.startswith("_"):
        return AttributeError(f"module {module!r} has no attribute {name!r}")

    def squeezed(text: str) -> str:  # LeakyReLU is leaky_relu, and BatchNorm1d batch_norm
        return re.sub(r"\dd$", "", text).replace("_", "").lower()

    def sentence() -> str:
        if name not in CLASSES and name.endswith("LR"):
            instead = "; write minillm.optim.lr_scheduler.LambdaLR(optimizer, factor_of_step)"
        elif name in CLASSES:
            instead = f"; write {CLASSES[name]}"
        else:
            same = [f"minillm.ops.{one}" for one in functions if squeezed(one) == squeezed(name)]
            same += [text for one, text in FUNCTIONS.items() if squeezed(one) == squeezed(name)]
            instead = f"; write {same[0]}" if same else ""
        kind = next((text for pattern, text in KINDS.items() if re.search(pattern, name.lower())), None)
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.6)) or ", ".join(sorted(known))
        return f"{module} has no `{name}`{instead or (f'; {kind}' if kind else f'; the nearest names are {near}')}"

    return NoSuchNameError(name, sentence)


def missing_in_module(name: str, module: Any) -> AttributeError:
    """The error for an attribute that a layer or a model does not have."""
    kind = type(module).__name__
    if name.startswith("_"):
        return AttributeError(f"{kind!r} object has no attribute {name!r}")

    def sentence() -> str:
        known = [one for one in dir(module) if not one.startswith("_")]
        near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.6))
        instead = f"write {MODULES[name]}" if name in MODULES else f"the nearest names are {near}" if near else ""
        weights = [path for path, _ in module.named_parameters()]
        own = ", ".join(weights[:4] + ["..."] * (len(weights) > 4)) or "none"
        return f"{kind} has no `{name}`; {instead or f'its parameters are {own}'}"

    return NoSuchNameError(name, sentence)
