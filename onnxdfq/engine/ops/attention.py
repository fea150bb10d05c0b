"""Attention and what belongs to it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onnxdfq.engine.dtypes import torch_dtype


def Attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    output_count: int = 1,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scaled dot-product attention. q, k, v: (B, S, heads · D) or (B, heads, S, D).

    Returns the result in the layout of q, the present key and value, and the scores (of `qk_matmul_output_mode`) where
    they are asked for. A query that may look at no key gives zeros.
    """
    flat = q.ndim == 3
    if flat:
        q, k, v = _split_heads(q, q_num_heads), _split_heads(k, kv_num_heads), _split_heads(v, kv_num_heads)
    offset: int | Tensor = 0  # how many keys precede the first query
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = torch.cat([past_key, k], dim=2), torch.cat([past_value, v], dim=2)
    elif nonpad_kv_seqlen is not None:
        offset = (nonpad_kv_seqlen - q.shape[2]).reshape(-1, 1, 1, 1)
    present_key, present_value = k, v
    if q.shape[1] != k.shape[1]:  # grouped queries: neighbours share a key head
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale

    allowed = _allowed(q.shape[2], k.shape[2], offset, is_causal, left_window_size, right_window_size, q.device)
    if nonpad_kv_seqlen is not None:
        real = torch.arange(k.shape[2], device=q.device) < nonpad_kv_seqlen.reshape(-1, 1, 1, 1)
        allowed = real if allowed is None else allowed & real
    plain = not softcap and softmax_precision is None and output_count < 4 and q.dtype is not torch.float16
    if plain and attn_mask is None and allowed is None:
        result, scores = F.scaled_dot_product_attention(q, k, v, scale=scale), None
    else:
        bias = _bias(attn_mask, allowed, k.shape[2], q.dtype)
        result, scores = _attend(q, k, v, bias, scale, softcap, softmax_precision, qk_matmul_output_mode)
    if flat:
        result = result.transpose(1, 2).flatten(2)
    return result, present_key, present_value, scores


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, heads · D) → (B, heads, S, D)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _allowed(
    queries: int, keys: int, offset: int | Tensor, is_causal: int, left: int, right: int, device: torch.device
) -> Tensor | None:
    """Which key each query may look at by position, True where it may; None where all may."""
    if not is_causal and left < 0 and right < 0:
        return None
    at = torch.arange(queries, device=device).unsqueeze(1) + offset
    key = torch.arange(keys, device=device)
    allowed = torch.ones(1, 1, dtype=torch.bool, device=device)
    if is_causal:
        allowed = allowed & (key <= at)
    if left >= 0:
        allowed = allowed & (key >= at - left)
    if right >= 0:
        allowed = allowed & (key <= at + right)
    return allowed


def _bias(mask: Tensor | None, allowed: Tensor | None, keys: int, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores: 0 or a float mask where a query may look, -inf where it may not."""
    if mask is not None and mask.shape[-1] < keys:  # keys beyond a short mask are out of sight
        filler = 0.0 if mask.dtype is torch.bool else float("-inf")
        mask = F.pad(mask, (0, keys - mask.shape[-1]), value=filler)
    if mask is not None and mask.dtype is torch.bool:
        allowed = mask if allowed is None else allowed & mask
        mask = None
    if allowed is None:
        return mask
    zero = torch.zeros((), dtype=dtype, device=allowed.device)
    return torch.where(allowed, zero if mask is None else mask, float("-inf"))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    softcap: float,
    softmax_precision: int | None,
    output_mode: int,
) -> tuple[Tensor, Tensor]:
    dtype, root = q.dtype, math.sqrt(scale)
    if dtype is torch.float16:  # scores overflow it, and a softmax in it is off by more than its last bit
        q, k, v = q.float(), k.float(), v.float()
    scores = [torch.matmul(q * root, k.transpose(-1, -2) * root)]  # one entry per output mode
    scores.append(softcap * torch.tanh(scores[-1] / softcap) if softcap else scores[-1])
    scores.append(scores[-1] if bias is None else scores[-1] + bias)
    weights = torch.softmax(scores[-1].to(torch_dtype(softmax_precision)) if softmax_precision else scores[-1], dim=-1)
    if bias is not None:
        weights = torch.where((scores[-1] == float("-inf")).all(dim=-1, keepdim=True), 0.0, weights)
    scores.append(weights.to(q.dtype))
    return torch.matmul(scores[-1], v).to(dtype), scores[output_mode].to(dtype)


def RotaryEmbedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """arXiv 2104.09864. x: (B, h, S, D) or (B, S, h · D); caches: (B, S, R / 2), by ids (positions, R / 2)."""
    flat = x.ndim == 3
    heads = _split_heads(x, num_heads) if flat else x  # (B, heads, S, D)
    size = rotary_embedding_dim or heads.shape[-1]
    cos, sin = (cache if position_ids is None else cache[position_ids] for cache in (cos_cache, sin_cache))
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # (B, 1, S, R / 2)
    turned, rest = heads[..., :size], heads[..., size:]
    real, imaginary = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    parts = (cos * real - sin * imaginary, sin * real + cos * imaginary)
    turned = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    result = torch.cat([turned, rest], dim=-1)
    return result.transpose(1, 2).flatten(2) if flat else result


def SwiGLU(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Swish(a) · b, arXiv 2002.05202."""
    return a * torch.sigmoid(alpha * a) * b
