"""Each paper's equation, written out literally: slow, any dtype, the oracle of every test.

Feature maps are ``(b, c, *spatial)``; positions are flattened to ``n`` (queries) and ``m`` (keys) and come
before the width, as in PyTorch's own attention: query ``(b, n, d)``, key ``(b, m, d)``, value ``(b, m, e)``.
A ``*_weights`` function returns the full matrix ``(b, n, m)``; give it a few rows of ``query`` and it returns
just those rows. Nothing here is tuned, and nothing here may be.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

# --------------------------------------------------------------------------------------- pairwise similarities


def dot_scores(query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"], scale: float = 1.0) -> Tensor:
    """``s_ij = scale * q_i . k_j``, shape (b, n, m)."""
    return scale * (query @ key.transpose(-2, -1))


def cosine_scores(query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"], scale: float = 1.0) -> Tensor:
    """``s_ij = scale * q_i . k_j / (|q_i| |k_j|)``, shape (b, n, m); a zero vector scores 0."""
    return scale * (F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-2, -1))


def concatenation_scores(
    a: Float[Tensor, "b n"], b: Float[Tensor, "b m"], negative_slope: float = 1.0
) -> Tensor:
    """``s_ij = leaky_relu(a_i + b_j)``, shape (b, n, m).

    ``w . [q_i, k_j] = w_q . q_i + w_k . k_j = a_i + b_j``: the caller projects once. ``negative_slope=1`` is
    the linear score, ``0`` the ReLU of Non-local networks.
    """
    return F.leaky_relu(a[:, :, None] + b[:, None, :], negative_slope)


def perceptron_scores(
    query: Float[Tensor, "b n d"], key: Float[Tensor, "b m d"], weight: Float[Tensor, " d"]
) -> Tensor:
    """``s_ij = w . tanh(q_i + k_j)`` (Bahdanau's additive attention), shape (b, n, m)."""
    return torch.tanh(query[:, :, None, :] + key[:, None, :, :]) @ weight


def softmax_weights(scores: Float[Tensor, "b n m"], mask: Bool[Tensor, "#b #n m"] | None = None) -> Tensor:
    """Softmax over keys. ``mask`` is True where a key may be attended to; a row with no key is all zeros."""
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    largest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    unnormalised = (scores - largest).exp()
    return unnormalised / unnormalised.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


# ---------------------------------------------------------------------------------------------------- attention


def softmax_attention(
    query: Float[Tensor, "b n d"],
    key: Float[Tensor, "b m d"],
    value: Float[Tensor, "b m e"],
    *,
    scale: float = 1.0,
    mask: Bool[Tensor, "#b #n m"] | None = None,
) -> Float[Tensor, "b n e"]:
    """``y_i = sum_j softmax_j(scale * q_i . k_j) v_j`` (SAGAN eq. 1-2; DANet eq. 1-2; Non-local eq. 3-4)."""
    return softmax_weights(dot_scores(query, key, scale), mask) @ value


def cosine_attention(
    query: Float[Tensor, "b n d"],
    key: Float[Tensor, "b m d"],
    value: Float[Tensor, "b m e"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "b n e"]:
    """Softmax attention with cosine similarity."""
    return softmax_weights(cosine_scores(query, key, scale)) @ value


def perceptron_attention(
    query: Float[Tensor, "b n d"],
    key: Float[Tensor, "b m d"],
    weight: Float[Tensor, " d"],
    value: Float[Tensor, "b m e"],
) -> Float[Tensor, "b n e"]:
    """Softmax attention with perceptron similarity."""
    return softmax_weights(perceptron_scores(query, key, weight)) @ value


def concatenation_attention(
    a: Float[Tensor, "b n"],
    b: Float[Tensor, "b m"],
    value: Float[Tensor, "b m e"],
    *,
    negative_slope: float = 1.0,
) -> Float[Tensor, "b n e"]:
    """Softmax attention with concatenation similarity, ``softmax_j(leaky_relu(a_i + b_j)) v_j``."""
    return softmax_weights(concatenation_scores(a, b, negative_slope)) @ value


def dot_product(
    theta: Float[Tensor, "b n d"],
    phi: Float[Tensor, "b m d"],
    g: Float[Tensor, "b m e"],
    *,
    scale: float = 1.0,
) -> Float[Tensor, "b n e"]:
    """``y_i = 1/m sum_j scale (theta_i . phi_j) g_j`` (Non-local eq. 1 with f of eq. 4, C(x) = m)."""
    return (dot_scores(theta, phi, scale) / phi.shape[1]) @ g


def concatenation(
    a: Float[Tensor, "b n"], b: Float[Tensor, "b m"], g: Float[Tensor, "b m e"]
) -> Float[Tensor, "b n e"]:
    """``y_i = 1/m sum_j ReLU(a_i + b_j) g_j`` (Non-local eq. 1 with f of eq. 5, C(x) = m)."""
    return (concatenation_scores(a, b, negative_slope=0.0) / b.shape[1]) @ g


def channel_attention_weights(x: Float[Tensor, "b c n"], form: str = "code") -> Float[Tensor, "b c c"]:
    """DANet's channel matrix. ``form="paper"``: softmax_j(x_i . x_j) (eq. 3).

    ``form="code"``: softmax_j(max_j(x_i . x_j) - x_i . x_j), what the released code and every trained weight
    use: the least similar channel gets the most weight.
    """
    energy = x @ x.transpose(-2, -1)
    if form == "code":
        energy = energy.amax(-1, keepdim=True) - energy
    return softmax_weights(energy)


def channel_attention(x: Float[Tensor, "b c n"], form: str = "code") -> Float[Tensor, "b c n"]:
    """``y_i = sum_j weights_ij x_j`` over channels (DANet eq. 3-4, without the learned scale)."""
    return channel_attention_weights(x, form) @ x


# -------------------------------------------------------------------------------------------------------- gates


def squeeze(x: Float[Tensor, "b c *spatial"], statistic: str = "mean") -> Float[Tensor, "b c"]:
    """Mean or max of each channel over all positions (SENet eq. 2; CBAM section 3.1)."""
    positions = tuple(range(2, x.ndim))
    return x.mean(positions) if statistic == "mean" else x.amax(positions)


def channel_scale(x: Float[Tensor, "b c *spatial"], gate: Float[Tensor, "b c"]) -> Tensor:
    """``y_cp = gate_c x_cp`` (SENet eq. 4)."""
    return x * gate.reshape(*gate.shape, *[1] * (x.ndim - 2))


def spatial_statistics(x: Float[Tensor, "b c *spatial"], gate: Float[Tensor, "b c"] | None = None) -> Tensor:
    """Mean and max over channels of (gated) ``x``: (b, 2, *spatial), mean first (CBAM section 3.2)."""
    if gate is not None:
        x = channel_scale(x, gate)
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)


def dual_scale(
    x: Float[Tensor, "b c *spatial"],
    channel_gate: Float[Tensor, "b c"],
    spatial_gate: Float[Tensor, "b 1 *spatial"],
) -> Tensor:
    """``y_cp = channel_gate_c spatial_gate_p x_cp`` (CBAM eq. 1, both gates at once)."""
    return channel_scale(x, channel_gate) * spatial_gate
