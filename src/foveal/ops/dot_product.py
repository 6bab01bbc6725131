"""Non-local's dot product without the N x N matrix: exact, by multiplying in the cheaper order."""

import torch
from jaxtyping import Float
from torch import Tensor

from foveal.ops.numerics import autocast_disabled, is_transposed, sum_dtype, tracing


@torch.fx.wrap
def dot_product(
    theta: Float[Tensor, "b n d"],
    phi: Float[Tensor, "b m d"],
    g: Float[Tensor, "b m e"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "b n e"]:
    """Compute ``y_i = 1/m sum_j scale (theta_i . phi_j) g_j``, multiplied in the cheaper order.

    ``theta (phi^T g)`` costs ``(n + m) d e`` multiplications, ``(theta phi^T) g`` costs ``n m (d + e)``: the first
    is taken unless the second is known to be cheaper (few positions, wide vectors). Sizes that are symbolic under
    ``torch.compile`` or ``torch.export`` take the first and stay symbolic.

    Args:
        theta: queries.
        phi: keys.
        g: values.
        scale: factor of every similarity.

    Returns:
        Output (b, n, e) in the dtype of ``g``.

    Example:
        >>> theta, phi, g = torch.randn(2, 64, 8), torch.randn(2, 16, 8), torch.randn(2, 16, 32)
        >>> y = dot_product(theta, phi, g)
        >>> torch.allclose(y, (theta @ phi.mT / 16) @ g, atol=1e-5)
        True

    Source: Wang et al., Non-local Neural Networks, eq. 1 with the f of eq. 4 and C(x) = m; only the order of the
    products differs.
    """
    n, d = theta.shape[1:]
    m, e = g.shape[1:]
    with autocast_disabled(theta.device):
        dtype = sum_dtype(g)
        theta, phi, value = theta.to(dtype), phi.to(dtype), g.to(dtype)
        if _known(n * m * (d + e) < (n + m) * d * e):
            y = (theta @ phi.mT * (scale / m)) @ value
        else:
            # written transposed where g is, so that the caller's feature map needs no copy
            summary = (value.mT @ phi) * (scale / m)
            y = (summary @ theta.mT).mT if is_transposed(g) else theta @ summary.mT
        return y.to(g.dtype)


def _known(condition: bool | torch.SymBool) -> bool:
    """Return ``condition`` if it follows from the sizes alone; False, without a guard, if a symbolic size decides."""
    # under torch.jit.trace sizes are tensors
    if tracing():
        return False
    if not torch.compiler.is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return statically_known_true(condition)
