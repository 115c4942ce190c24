"""bsgen in PyTorch: block-sparse layers that train, compile and serve as `torch.nn.Linear` does.

layer = bsgen.torch.BlockSparseLinear(layout, block_size=32)      # weight [nnz, b, b], runs on CUDA and on the CPU
layer = bsgen.torch.BlockSparseLinear.from_linear(linear, density=0.1)
bsgen.torch.sparsify(model, density=0.25)                         # every Linear of a trained model
"""

try:
    import torch as _torch
except ImportError:
    raise ImportError("bsgen.torch needs PyTorch, which is not installed: pip install 'bsgen[torch]'") from None

if tuple(map(int, _torch.__version__.split("+")[0].split(".")[:2])) < (2, 4):
    raise ImportError(
        f"bsgen.torch needs PyTorch 2.4 or later, got {_torch.__version__}: pip install -U 'bsgen[torch]'"
    )

from bsgen.torch import functional
from bsgen.torch.linear import BlockSparseLinear
from bsgen.torch.products import Products, register
from bsgen.torch.prune import Pruner
from bsgen.torch.schedule import PolynomialSchedule
from bsgen.torch.sparsify import dense_twin, sparsify

__all__ = [
    "BlockSparseLinear",
    "PolynomialSchedule",
    "Products",
    "Pruner",
    "dense_twin",
    "functional",
    "register",
    "sparsify",
]
