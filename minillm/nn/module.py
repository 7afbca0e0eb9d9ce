"""Module: the base of layers and models, which finds its parameters by walking its own attributes.

Nothing is registered, and assigning an attribute is just that. A parameter's key in the state dict is its path, such as
`h.3.attn.qkv.weight`. `print(model)` shows the tree of layers (tree.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minillm import autograd, backend, module_hints, pretrained
from minillm.autograd import Parameter
from minillm.backend import Array
from minillm.device import like, to_device
from minillm.dtypes import device_and_dtype
from minillm.errors import CheckpointError, DtypeError
from minillm.grad_mode import quiet, state
from minillm.nn.tree import tree


class Module:
    """Base of all layers and models: a subclass sets attributes in __init__ and defines `forward`."""

    training = True
    name = ""  # the path from the model to this layer, set by assign_names and shown by errors and profiles

    def __getattr__(self, name: str) -> Any:
        raise module_hints.missing_in_module(name, self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the layer's output; `module(...)` calls this."""
        raise TypeError(f"{type(self).__name__}: a Module needs a forward method")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before = autograd.enter_scope(self.name)
        try:
            if state.quiet:
                output = self.forward(*args, **kwargs)
            else:
                with quiet():
                    output = self.forward(*args, **kwargs)
            for observer in state.observers:
                if observer.on_module is not None:
                    observer.on_module(self, (*args, *kwargs.values()), output)
            return output
        finally:
            autograd.enter_scope(before)

    def named_children(self) -> Iterator[tuple[str, Any]]:
        """Each module and parameter directly below, with its attribute name, and its key if it is in a list or dict."""
        yield from find_children(vars(self).items())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all modules below it, each with its path."""
        yield prefix, self
        for name, child in self.named_children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its path, in the order of the attributes; a shared one once, under its first path."""
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, child in module.named_children():
                if isinstance(child, Parameter) and id(child) not in seen:
                    seen.add(id(child))
                    yield (f"{path}.{name}" if path else name), child

    def parameters(self) -> list[Parameter]:
        """Every parameter, a shared one once."""
        return [parameter for _, parameter in self.named_parameters()]

    def num_parameters(self) -> int:
        """The number of weights; a shared parameter counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def assign_names(self) -> None:
        """Give every layer and parameter its path as its name; a model calls this at the end of its __init__."""
        for path, module in self.named_modules():
            module.name = path
        for path, parameter in self.named_parameters():
            parameter.name = path

    def train(self, mode: bool = True) -> Any:
        """Switch dropout on in all layers, or off with mode=False; returns the module."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Any:
        """Switch dropout off in all layers; returns the module."""
        return self.train(False)

    def to(self, *targets: Any) -> Any:
        """Move all parameters to a device, convert them to a dtype, or both: `model.to("cuda", "bfloat16")`.

        Call it before building an optimiser. Returns the module.
        Raises: DeviceError for a missing device; DtypeError for a target that is neither a device nor a floating dtype.
        """
        device, dtype = device_and_dtype(targets)
        if dtype is not None and dtype.kind in "iub":
            raise DtypeError(f"to: parameters of dtype {dtype} cannot be trained; give a floating dtype")
        for parameter in self.parameters():
            data = parameter.data if dtype is None else parameter.data.astype(dtype)
            parameter.data = data if device is None else to_device(data, device)
            parameter.grad = parameter.grad_buffer = None
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Set all gradients to None, or fill them with zeros."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad[...] = 0

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Train all parameters, or freeze them with False; returns the module."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def modules(self) -> Iterator[Module]:
        """This module and all modules below it."""
        yield from (module for _, module in self.named_modules())

    def children(self) -> Iterator[Module]:
        """The modules directly below."""
        yield from (child for _, child in self.named_children() if isinstance(child, Module))

    def apply(self, function: Callable[[Module], Any]) -> Any:
        """Call `function` on every module, on children before their parent; returns the module."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    def save_pretrained(self, folder: str | Path, max_shard_bytes: int = 5 * 10**9) -> None:
        """Write config.json and model.safetensors, which transformers' `from_pretrained` reads; see pretrained.py.

        Raises: InputError for a module without a form in Hugging Face's format, CheckpointError where a file cannot be
        written.
        """
        pretrained.save_pretrained(self, folder, max_shard_bytes)

    def state_dict(self) -> dict[str, Array]:
        """Every parameter's array under its path: references, not copies."""
        return {name: parameter.data for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Copy arrays into the parameters: all of them, or none if any does not fit.

        Raises: CheckpointError that lists every missing and unexpected name and every wrong shape at once.
        """
        own = dict(self.named_parameters())
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {np.shape(state[name])}, expected {parameter.shape}"
            for name, parameter in own.items()
            if name in state and np.shape(state[name]) != parameter.shape
        ]
        if problems:
            raise CheckpointError(
                f"load_state_dict: the weights do not fit {type(self).__name__}: {'; '.join(problems)}; "
                "build the model with the configuration that the weights were saved with"
            )
        for name, parameter in own.items():
            parameter.data[...] = like(backend.as_array(state[name]), parameter.data)
            parameter.version += 1  # a backward through the old weights now raises

    def extra_repr(self) -> str:
        """The layer's settings, which `print(model)` shows in parentheses, such as `p=0.1`."""
        return ""

    def __repr__(self) -> str:
        return tree(self)


def find_children(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
    """Every Module and Parameter among the values, and in lists, tuples and dicts among them, with its path."""
    for name, value in items:
        if isinstance(value, (Module, Parameter)):
            yield str(name), value
        elif isinstance(value, (list, tuple, dict)):
            inside = value.items() if isinstance(value, dict) else enumerate(value)
            yield from ((f"{name}.{path}", child) for path, child in find_children(inside))
