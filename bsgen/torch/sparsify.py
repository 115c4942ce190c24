"""Models made block-sparse: every Linear by the magnitude of its blocks, and back to dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase

from torch import nn

from bsgen.checks import share
from bsgen.errors import ArgumentError
from bsgen.torch.linear import BlockSparseLinear
from bsgen.torch.schedule import PolynomialSchedule
from bsgen.weights import Norm

Include = str | Callable[[str, nn.Linear], bool] | None
ACTIVATION_MODULES = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def sparsify(
    model: nn.Module,
    density: float | None = None,
    block_size: int = 32,
    include: Include = None,
    schedule: PolynomialSchedule | None = None,
    norm: Norm = "l2",
) -> nn.Module:
    """Replace `torch.nn.Linear` layers of `model`, in place, by `BlockSparseLinear`s with their blocks of largest norm.

    Args:
        density: the share of blocks that each layer keeps; with a `schedule`, leave it out: layers start with the
            schedule's first density, and a `Pruner` takes them further.
        include: which layers: a pattern of names ("*.mlp.*", as `fnmatch`), or a function of name and layer. None: all
            that blocks fill.

    Returns:
        `model`; a new layer if `model` itself is a Linear.

    Raises:
        ArgumentError: nothing to replace; both or neither of density and schedule. LayoutError: an included layer that
            blocks do not fill.
    """
    if (density is None) == (schedule is None):
        raise ArgumentError(f"density, schedule: got {density!r} and {schedule!r}, expected exactly one of the two")
    kept = share("density", density) if schedule is None else schedule.density(0)
    chosen = [(name, layer) for name, layer in _linears(model) if _included(name, layer, block_size, include)]
    if not chosen:
        raise ArgumentError(
            f"include: got {include!r}, and no Linear of the model is included whose features are multiples of {block_size}: "
            "see model.named_modules(), or use a smaller block_size"
        )
    for name, layer in chosen:
        made = BlockSparseLinear.from_linear(layer, kept, block_size=block_size, norm=norm)
        if not name:
            return made
        _replace(model, name, made)
    return model


def dense_twin(model: nn.Module) -> nn.Module:
    """A copy of `model` with `torch.nn.Linear` layers (and activations) in place of its `BlockSparseLinear`s: to compare with."""
    twin = copy.deepcopy(model)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, BlockSparseLinear):
            dense: nn.Module = layer.to_linear()
            if layer.activation:
                dense = nn.Sequential(dense, ACTIVATION_MODULES[layer.activation]())
            if not name:
                return dense
            _replace(twin, name, dense)
    return twin


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Layers that are a Linear and nothing more: subclasses have a forward of their own."""
    return ((name, layer) for name, layer in model.named_modules() if type(layer) is nn.Linear)


def _included(name: str, layer: nn.Linear, block_size: int, include: Include) -> bool:
    if include is None:
        return not (layer.in_features % block_size or layer.out_features % block_size)
    return fnmatchcase(name, include) if isinstance(include, str) else bool(include(name, layer))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, layer)
