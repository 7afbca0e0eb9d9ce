"""Checks that the tests of all models share: of gradients, of graphs, and against the same model in transformers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minillm.autograd import Node, Tensor
from minillm.nn import Module
from minillm.optim import AdamW
from minillm.pretrained import joined_names, pieces_in_hugging_face


def with_large_weights(model: Any, std: float = 0.4, seed: int = 0) -> Any:
    """Give the model weights so large that every part of it matters: around 1 in norms, around 0 elsewhere."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        is_norm = name.endswith("weight") and parameter.ndim == 1
        parameter.data[...] = rng.normal(0, std, parameter.shape) + (1 if is_norm else 0)
    return model


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def all_nodes(out: Tensor) -> set[Node]:
    """The operations that led to a tensor."""
    found: set[Node] = set()
    stack = [out.node]
    while stack:
        node = stack.pop()
        if isinstance(node, Node) and node not in found:
            found.add(node)
            stack += [edge[0] for edge in node.edges if edge is not None]
    return found


def check_slopes(model: Module, loss: Callable[[], Tensor], rng: np.random.Generator) -> None:
    """Every gradient equals central differences, along one random direction in each parameter; all in float64."""
    loss().backward()
    checked = 0
    for name, parameter in model.named_parameters():
        assert parameter.dtype == np.float64
        if not parameter.requires_grad:
            assert parameter.grad is None
            continue
        direction = rng.normal(size=parameter.shape)
        step = 1e-5 / np.linalg.norm(direction)
        losses = []
        for sign in (1, -1):
            parameter.data += sign * step * direction
            losses.append(loss().item())
            parameter.data -= sign * step * direction
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-7), name
        checked += 1
    assert checked


# transformers


def joined(model: Any, name: str, theirs: dict[str, Any]) -> np.ndarray:
    """The tensors in transformers that are one of our parameters, by their names, in our shape."""
    module = sys.modules[type(model).__module__]
    theirs = taken_apart(module, model.config, theirs)
    parts = []
    for piece in pieces_in_hugging_face(model):
        if piece.parameter == name:
            array = theirs[piece.name].detach().numpy()
            parts.append(
                array.reshape(piece.rows.shape[::-1]).T if piece.transposed else array.reshape(piece.rows.shape)
            )
    return np.concatenate(parts)


def taken_apart(module: Any, config: Any, theirs: dict[str, Any]) -> dict[str, Any]:
    """The tensors in transformers by name; a joined tensor by the names of its parts."""
    split = dict(theirs)
    for whole, parts in joined_names(module, config).items():
        tensor = split.pop(whole)
        is_qkv = len(parts) == 3
        rows = module.rows_in_hugging_face(config, "") if is_qkv else len(tensor) // len(parts)
        split |= dict(zip(parts, tensor.split(rows), strict=True))
    return split


def twin(model: Any, reference: Any) -> Any:
    """Copy the weights of the reference into our model."""
    state = reference.state_dict()
    model.load_state_dict({name: joined(model, name, state) for name in model.state_dict()})
    return model


def enlarge(reference: Any, std: float = 0.4) -> Any:
    """Give the reference large random weights in all its parameters."""
    import torch

    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * std)
    return reference


def check_parameters(
    kind: str, model: Any, reference: Any, tolerance: float, floor: float = 0.0, unused: tuple[str, ...] = ()
) -> None:
    """Check that every parameter ("data"), or every gradient ("grad"), equals the reference's.

    floor: share of the largest number there up to which all is rounding error, of what has no effect.
    unused: how the names of parameters begin that may have no gradient here; there it must then be 0.
    """
    names = reference.named_parameters(remove_duplicate=False)
    theirs = {name: getattr(parameter, kind) for name, parameter in names}
    theirs = {name: reference.get_parameter(name) * 0 if x is None else x for name, x in theirs.items()}
    least = floor * max(float(array.detach().abs().max()) for array in theirs.values())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # a buffer in transformers
            continue
        array, expected = getattr(parameter, kind), joined(model, name, theirs)
        if array is None:
            assert name.startswith(unused), f"{name} has no gradient"
            array = np.zeros_like(parameter.data)
        if np.abs(expected).max() <= least:
            assert np.abs(array).max() <= least, f"{kind} of {name}"
            continue
        error = relative_error(array, expected)
        assert error < tolerance, f"{kind} of {name}: {error:.1e}"


def optimizers(model: Any, reference: Any) -> tuple[AdamW, Any]:
    """AdamW for both, with settings that are neither library's defaults."""
    import torch

    settings = 1e-2, (0.8, 0.9), 1e-3
    theirs = torch.optim.AdamW(reference.parameters(), *settings, weight_decay=0.1)
    return AdamW(model.parameters(), *settings, weight_decay=0.1), theirs


def check_language_model(model: Any, reference: Any, ids: np.ndarray, targets: np.ndarray, tolerance: float) -> None:
    """Check that logits, loss, all gradients, and all weights after a step of AdamW equal the reference's."""
    import torch

    check_parameters("data", model, reference, 1e-30)
    expected = reference(torch.tensor(ids)).logits
    assert relative_error(model(ids).numpy(), expected.detach().numpy()) < tolerance
    loss = model.loss(ids, targets)
    loss.backward()
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.tensor(targets).flatten())
    expected_loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance)
    optimizer, theirs_optimizer = optimizers(model, reference)
    optimizer.step()
    theirs_optimizer.step()
    check_parameters("data", model, reference, tolerance)


def in_float64(torch: Any, config: Any) -> Any:
    """transformers' table of distances, by its formula, in float64 instead of float32."""

    def table(qlen, klen, bsz=None, device=None):
        frequency = 1 / 10000 ** (torch.arange(0, config.channels, 2.0, dtype=torch.float64) / config.channels)
        distance = torch.arange(klen, -qlen, -1.0, dtype=torch.float64)
        parts = []
        for sign in (1, -1) if config.bi_data else (1,):
            d = sign * distance
            d = d.clamp(-config.clamp_len, config.clamp_len) if config.clamp_len > 0 else d
            angle = d[:, None] * frequency
            emb = torch.cat([angle.sin(), angle.cos()], -1)[:, None]
            parts.append(emb.expand(-1, bsz // (2 if config.bi_data else 1), -1))
        return torch.cat(parts, 1)

    return table


def llama_in_float64(reference: Any, model: Any) -> None:
    """Replace the norms and rotary tables of a transformers Llama, which are in float32 in every dtype, by ours."""
    import torch

    from minillm.models.llama import cos_sin_tables

    for module in reference.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: (
                m.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
            )
        if type(module).__name__.endswith("RotaryEmbedding"):

            def both_halves(x: Any, position_ids: Any, **_: Any) -> Any:
                config = model.config
                tables = cos_sin_tables(config.rotary_channels, *config.rope(False), 0, position_ids.shape[-1])
                cos, sin = (torch.tensor(table) for table in tables)
                return torch.cat([cos, cos], -1)[None], torch.cat([sin, sin], -1)[None]

            module.forward = both_halves
