"""How the attention of a module is read from its input: foveal's blocks, and those of timm and torchvision.

A reader takes a float32 copy of the module in eval mode, the recorded input, query positions and the site's grid, and
returns the weights by name. What has no reader here is not read at all: no picture is better than a wrong one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from foveal.ops import reference

Reader = Callable[[nn.Module, Tensor, Sequence[tuple[int, ...]] | None, tuple[int, ...]], dict[str, Tensor]]

# Modules of other libraries whose gate is the output of one named child: {class name: {child: what it is}}.
FOREIGN_GATES = {
    "SEModule": {"gate": "channel_gate"},
    "SqueezeExcite": {"gate": "channel_gate"},
    "EffectiveSEModule": {"gate": "channel_gate"},
    "EcaModule": {"gate": "channel_gate"},
    "SqueezeExcitation": {"scale_activation": "channel_gate"},
    "CbamModule": {"channel.gate": "channel_gate", "spatial.gate": "spatial_mask"},
}


def reader_of(module: nn.Module) -> Reader | None:
    if callable(getattr(module, "attention", None)):
        return _block_attention
    library = type(module).__module__.partition(".")[0]
    if library in ("timm", "torchvision") and type(module).__name__ in FOREIGN_GATES:
        return foreign_gates
    if is_token_attention(module):
        return token_rows
    return None


def _block_attention(
    block: Any, x: Tensor, positions: Sequence[tuple[int, ...]] | None, _spatial: object
) -> dict[str, Tensor]:
    return block.attention(x, positions)


def foreign_gates(module: nn.Module, x: Tensor, _positions: object, _spatial: object) -> dict[str, Tensor]:
    """Run the (copied) module once and take the outputs of its gate functions."""
    found: dict[str, Tensor] = {}

    def keep(key: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _args: object, gate: Tensor) -> None:
            found[key] = gate if key == "spatial_mask" else gate.reshape(gate.shape[0], -1)

        return hook

    gates = FOREIGN_GATES[type(module).__name__]
    handles = [module.get_submodule(child).register_forward_hook(keep(key)) for child, key in gates.items()]
    try:
        module.forward(x)  # not module(x): the copy carries the hooks of the original, this recording's too
    finally:
        for handle in handles:
            handle.remove()
    return found


def is_token_attention(module: nn.Module) -> bool:
    """timm's plain multi-head self-attention (ViT, DeiT, DINO); its relatives add biases, windows or rotations."""
    return type(module).__name__ == "Attention" and type(module).__module__ == "timm.layers.attention"


def token_grid(net: nn.Module, x: Tensor, image_size: tuple[int, ...]) -> tuple[int, int] | None:
    """Patch grid of a timm transformer for this input, or None when the tokens are not one grid of patches."""
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if patch is None or len(image_size) != 2:
        return None
    rows, columns = (-(-pixels // edge) for pixels, edge in zip(image_size, patch, strict=True))
    return (rows, columns) if rows * columns + getattr(net, "num_prefix_tokens", 0) == x.shape[1] else None


def token_rows(
    module: Any, x: Tensor, positions: Sequence[tuple[int, ...]] | None, grid: tuple[int, ...]
) -> dict[str, Tensor]:
    """softmax(q k / sqrt(d)) of patch queries, mean over heads, on patch tokens (class tokens come first)."""
    b, n, _ = x.shape
    prefix = n - grid[0] * grid[1]
    asked = [prefix + y * grid[1] + x_ for y, x_ in positions or [(grid[0] // 2, grid[1] // 2)]]
    qkv: Tensor = module.qkv(x).reshape(b, n, 3, module.num_heads, -1)
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = module.q_norm(query[:, :, asked]), module.k_norm(key)
    weights = reference.softmax_weights(
        reference.dot_scores(query.flatten(0, 1), key.flatten(0, 1), float(query.shape[-1]) ** -0.5)
    )
    rows = weights.unflatten(0, (b, -1)).mean(1)[..., prefix:]
    return {"rows": rows.reshape(b, len(asked), *grid)}
