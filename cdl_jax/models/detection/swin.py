"""Swin Transformer with the reconfigured attention of ViDT.

Detection tokens pass through all stages beside the patches. Patches attend within (shifted) windows; detection tokens
attend to each other and, in cross stages, to all patches. Images lie in extents, extents in canvases (see `masks`): the
padding of windows and the wrap-around of shifts are those of the extent.

Swin Transformer (Liu et al., 2021), ViDT (Song et al., 2022).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax.models.detection.masks import STRIDES, Extents, sine_positions
from cdl_jax.models.detection.neck import torch_dense, wide
from cdl_jax.models.modules import layers
from cdl_jax.models.modules.heads import torch_kernel

PATCH = 4
MASKED = -100.0  # added to the logits of masked keys

_normal = nn.initializers.normal(0.02)


@struct.dataclass
class Keys:
    """The patches that the detection tokens of a cross stage attend to.

    Attributes:
      mask: bool `[batch, height, width]`, True at padding.
      positions: `[batch, height, width, dim]`, added to the patches.
    """

    mask: jax.Array
    positions: jax.Array


def relative_positions(window: int) -> jax.Array:
    """Returns rows of the bias table by query and key, int `[window^2, window^2]`.

    >>> relative_positions(2)[0].tolist()
    [4, 3, 1, 0]
    """
    y, x = jnp.divmod(jnp.arange(window**2), window)
    return (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1


def to_windows(x: jax.Array, window: int) -> jax.Array:
    """Divides maps into windows, row by row.

    Maps are `[batch, height, width, ...]`, windows `[batch, windows, window^2, ...]`.
    """
    batch, height, width, *rest = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, *rest)
    return x.swapaxes(2, 3).reshape(batch, -1, window**2, *rest)


def from_windows(x: jax.Array, window: int, shape: Sequence[int]) -> jax.Array:
    """Returns the maps `[batch, *shape, ...]` of windows; the inverse of `to_windows`."""
    batch, rest = x.shape[0], x.shape[3:]
    x = x.reshape(batch, shape[0] // window, shape[1] // window, window, window, *rest)
    return x.swapaxes(2, 3).reshape(batch, *shape, *rest)


def shift_regions(extents: jax.Array, shape: Sequence[int], window: int) -> jax.Array:
    """Returns the regions of the windows of a shifted map.

    Patches attend only within their region.

    Args:
      extents: int32 `[batch, 2]`, (height, width) of the extents.
      shape: (height, width) of the padded map.
      window: height and width of a window.

    Returns:
      int32 `[batch, windows, window^2]`. A region is 4 x the label of the row plus that of the column. Labels of the
      unshifted rows: 2 for those that wrap around, 1 for the last window of the padded extent, 3 outside it, else 0.
    """
    shift = window // 2

    def labels(extent, length):
        row, end = jnp.arange(length), (-(-extent // window) * window)[:, None]
        label = jnp.where(row >= end, 3, jnp.where(row >= end - (window - shift), 1, 0))
        return jnp.where(row < shift, 2, label)

    rows, columns = (labels(extents[:, axis], shape[axis]) for axis in (0, 1))
    regions = 4 * rows[:, :, None] + columns[:, None, :]
    return to_windows(jnp.roll(regions, (-shift, -shift), (1, 2)), window)


def shift_mask(regions: jax.Array) -> jax.Array:
    """Returns the mask that is added to the logits, `[..., queries, keys]`.

    The mask is -100 between different regions `[..., patches]`, else 0.
    """
    return jnp.where(regions[..., :, None] == regions[..., None, :], 0, MASKED)


class ReconfiguredAttention(layers.ReadsParams, nn.Module):
    """Window attention of patches and global attention of detection tokens.

    Both have the same weights.

    Attributes:
      heads: number of attention heads.
      window: height and width of a window.
      shifted: whether windows are shifted by half a window.
      dtype: of the computation. Softmax is computed in float32.
    """

    heads: int
    window: int
    shifted: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, patches: jax.Array, tokens: jax.Array, extents: jax.Array, inside: jax.Array, keys: Keys | None
    ) -> tuple[jax.Array, jax.Array]:
        """Computes the attention.

        Args:
          patches: `[batch, height, width, dim]`, 0 outside the extents.
          tokens: `[batch, tokens, dim]`, detection tokens with their positions.
          extents: int32 `[batch, 2]`, (height, width) of the extents.
          inside: bool `[batch, height, width]`, whether a patch lies inside the extent.
          keys: of a cross stage, else None.

        Returns:
          (patches, tokens), of the shapes of the inputs.
        """
        dim = patches.shape[-1]
        qkv = torch_dense(3 * dim, dim, self.dtype, "qkv")
        project = torch_dense(dim, dim, self.dtype, "proj")

        def heads_of(x):
            return [part.reshape(*x.shape[:-1], self.heads, -1) for part in jnp.split(qkv(x), 3, axis=-1)]

        attended = project(self._attend_windows(heads_of, patches, extents))
        query, key, value = heads_of(tokens)
        bias = 0.0
        if keys is not None:
            _, patch_key, patch_value = (
                part.reshape(part.shape[0], -1, *part.shape[3:]) for part in heads_of(patches + keys.positions)
            )
            bias = jnp.where(inside, jnp.where(keys.mask, MASKED, 0.0), -jnp.inf).reshape(inside.shape[0], -1)
            bias = jnp.pad(bias, ((0, 0), (0, tokens.shape[1])))[:, None, None]
            key = jnp.concatenate([patch_key, key], axis=1)
            value = jnp.concatenate([patch_value, value], axis=1)
        mixed = _attend(query, key, value, bias)
        return attended, project(mixed.reshape(tokens.shape))

    def _attend_windows(self, heads_of, patches, extents):
        """Returns what the patches receive within their windows, before the last layer."""
        height, width = patches.shape[1:3]
        window, shift = self.window, self.window // 2
        table = self.param("relative_position_bias_table", _normal, ((2 * window - 1) ** 2, self.heads))
        bias = table[relative_positions(window)].transpose(2, 0, 1)
        padded = jnp.pad(patches, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
        if self.shifted:
            regions = shift_regions(extents, padded.shape[1:3], window)
            bias = bias + shift_mask(regions)[:, :, None]
            padded = jnp.roll(padded, (-shift, -shift), (1, 2))
        mixed = _attend(*(to_windows(part, window) for part in heads_of(padded)), bias)
        mixed = from_windows(mixed.reshape(*mixed.shape[:3], -1), window, padded.shape[1:3])
        if self.shifted:
            mixed = jnp.roll(mixed, (shift, shift), (1, 2))
        return mixed[:, :height, :width]


def _attend(query, key, value, bias):
    """Returns softmax(query key^T / sqrt(channels) + bias) value.

    Query, key, value and result are `[..., tokens, heads, channels]`.
    """
    scale = query.shape[-1] ** -0.5
    logits = jnp.einsum("...qhc,...khc->...hqk", query * scale, key, preferred_element_type=wide(query.dtype))
    weights = nn.softmax(logits + bias, axis=-1).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)


class MLP(nn.Module):
    """Two dense layers with exact (erf) GELU."""

    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = torch_dense(self.hidden, x.shape[-1], self.dtype, "fc1")(x)
        hidden = hidden * (1 + jax.lax.erf(hidden * 0.5**0.5)) / 2
        return torch_dense(x.shape[-1], self.hidden, self.dtype, "fc2")(hidden)


class Block(nn.Module):
    """Pre-norm block on patches and detection tokens.

    Attributes:
      heads: number of attention heads.
      window: height and width of a window.
      shifted: whether windows are shifted by half a window.
      mlp_ratio: hidden width of the MLP over the width of the block.
      drop_path: probability that a residual branch is dropped for an image in training.
      dtype: of the computation.
    """

    heads: int
    window: int
    shifted: bool
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        patches: jax.Array,
        tokens: jax.Array,
        token_positions: jax.Array,
        extents: jax.Array,
        inside: jax.Array,
        keys: Keys | None,
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns patches and tokens; arguments as in `Stage` and `ReconfiguredAttention`."""
        dim = patches.shape[-1]

        def residual(inputs, branch):
            scale = 1.0
            if self.drop_path and train:  # one draw an image, for its patches and tokens
                ones = jnp.ones((patches.shape[0], 1, 1), patches.dtype)
                scale = nn.Dropout(self.drop_path, deterministic=False)(ones)
            pairs = zip(inputs, branch, strict=True)
            return [x + y * (scale if x.ndim == 3 else jnp.expand_dims(scale, -1)) for x, y in pairs]

        norm1, norm2 = layer_norm("norm1", self.dtype), layer_norm("norm2", self.dtype)
        attention = ReconfiguredAttention(self.heads, self.window, self.shifted, self.dtype, name="attn")
        positions = torch_dense(dim, token_positions.shape[-1], self.dtype, "det_pos_linear")(token_positions)
        normalized = jnp.where(inside[..., None], norm1(patches), 0)
        x = residual((patches, tokens), attention(normalized, norm1(tokens) + positions, extents, inside, keys))
        mlp = MLP(int(dim * self.mlp_ratio), self.dtype, name="mlp")
        return tuple(residual(x, [mlp(norm2(part)) for part in x]))


class Merging(nn.Module):
    """Joins 2 x 2 patches to one of `features` channels.

    Detection tokens are repeated four times along channels.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array, tokens: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the merged patches and tokens.

        Merged patches are `[batch, ceil(height / 2), ceil(width / 2), features]`.
        """
        height, width = patches.shape[1:3]
        x = jnp.where(inside[..., None], patches, 0)
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = jnp.concatenate([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], axis=-1)
        norm = layer_norm("norm", self.dtype)
        reduce = layers.Dense(
            self.features, use_bias=False, dtype=self.dtype, kernel_init=torch_kernel, name="reduction"
        )
        return reduce(norm(x)), reduce(norm(jnp.tile(tokens, (1, 1, 4))))


class Stage(nn.Module):
    """Blocks of one width, every second one shifted, and the merging behind them.

    Attributes:
      heads: number of attention heads.
      window: height and width of a window.
      mlp_ratio: hidden width of the MLP over the width of the stage.
      drop_path: of each block.
      merged_width: number of channels after the merging; 0: no merging.
      dtype: of the computation.
      remat: whether each block is recomputed in the backward pass.
    """

    heads: int
    window: int
    mlp_ratio: float
    drop_path: Sequence[float]
    merged_width: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        patches: jax.Array,
        tokens: jax.Array,
        token_positions: jax.Array,
        extents: jax.Array,
        inside: jax.Array,
        mask: jax.Array | None = None,
        train: bool = False,
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array] | None]:
        """Computes the stage.

        Args:
          patches: `[batch, height, width, dim]`.
          tokens: `[batch, tokens, dim]`.
          token_positions: `[1, tokens, position channels]`, before the linear layer of each block.
          extents: int32 `[batch, 2]`, (height, width) of the extents.
          inside: bool `[batch, height, width]`, whether a patch lies inside the extent.
          mask: bool `[batch, height, width]`, padding mask of a cross stage. Default None: no cross attention.
          train: whether residual branches are dropped, default False.

        Returns:
          (patches, tokens) before the merging, and after it; None without merging.
        """
        keys = None if mask is None else Keys(mask, sine_positions(mask, patches.shape[-1]).astype(patches.dtype))
        block = nn.remat(Block, static_argnums=(7,)) if self.remat else Block
        for i, rate in enumerate(self.drop_path):
            layer = block(self.heads, self.window, i % 2 == 1, self.mlp_ratio, rate, self.dtype, name=f"blocks_{i}")
            patches, tokens = layer(patches, tokens, token_positions, extents, inside, keys, train)
        merged = None
        if self.merged_width:
            merged = Merging(self.merged_width, self.dtype, name="downsample")(patches, tokens, inside)
        return (patches, tokens), merged


class PatchEmbedding(nn.Module):
    """Embeds 4 x 4 pixels as one patch: a linear layer and a layer norm."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns `[batch, ceil(height / 4), ceil(width / 4), features]`."""
        batch, height, width, channels = images.shape
        x = jnp.pad(images.astype(self.dtype), ((0, 0), (0, -height % PATCH), (0, -width % PATCH), (0, 0)))
        rows, columns = x.shape[1] // PATCH, x.shape[2] // PATCH
        x = x.reshape(batch, rows, PATCH, columns, PATCH, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows, columns, PATCH * PATCH * channels)
        return layer_norm("norm", self.dtype)(torch_dense(self.features, x.shape[-1], self.dtype, "proj")(x))


class Swin(nn.Module):
    """Swin Transformer with detection tokens.

    Attributes:
      embed_dim: number of channels of the first stage; each later stage has twice as many.
      depths: number of blocks of each stage.
      heads: number of attention heads of each stage.
      window: height and width of a window.
      mlp_ratio: hidden width of an MLP over the width of its stage.
      drop_path: rate of stochastic depth in the last block; the rate of earlier blocks decreases linearly to 0.
      tokens: number of detection tokens.
      position_dim: number of channels of the positions of detection tokens.
      cross_stages: stages, from 0, whose detection tokens attend to patches.
      merged_width: number of channels after the last merging; 0: no last merging.
      dtype: of the computation.
      remat: whether each block is recomputed in the backward pass.
    """

    embed_dim: int
    depths: Sequence[int]
    heads: Sequence[int]
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    tokens: int = 100
    position_dim: int = 256
    cross_stages: Sequence[int] = (3,)
    merged_width: int = 256
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, images: jax.Array, extents: Extents, train: bool = False
    ) -> tuple[list[jax.Array], jax.Array, jax.Array]:
        """Computes maps and detection tokens.

        Args:
          images: float32 `[batch, height, width, 3]`, normalized, 0 outside the sizes of `extents`.
          extents: of the batch.
          train: whether residual branches are dropped, default False.

        Returns:
          maps: of stages 2, 3, 4 before merging, and that of the last merging. Strides 8, 16, 32, 64.
          tokens: `[batch, tokens, 8 * embed_dim]`, of stage 4 before merging.
          positions: `[1, tokens, position_dim]`, of the detection tokens.
        """
        token = self.param("det_token", _normal, (1, self.tokens, self.embed_dim))
        positions = self.param("det_pos_embed", _normal, (1, self.tokens, self.position_dim))
        patches = PatchEmbedding(self.embed_dim, self.dtype, name="patch_embed")(images)
        merged = patches, jnp.tile(token, (images.shape[0], 1, 1)).astype(patches.dtype)
        rates, maps, first = drop_path_rates(self.drop_path, sum(self.depths)), [], 0
        for i, depth in enumerate(self.depths):
            is_last, shape = i == len(self.depths) - 1, merged[0].shape[1:3]
            mask = None
            if i in self.cross_stages:
                mask = extents.cross_mask(STRIDES[i], shape, 2 ** (4 - len(self.cross_stages)))
            stage = Stage(
                self.heads[i],
                self.window,
                self.mlp_ratio,
                rates[first : first + depth],
                self.merged_width if is_last else 2 * merged[0].shape[-1],
                self.dtype,
                self.remat,
                name=f"layers_{i}",
            )
            inside = extents.inside(STRIDES[i], shape)
            (patches, tokens), merged = stage(*merged, positions, extents.of_map(STRIDES[i]), inside, mask, train)
            maps.append(patches)
            first += depth
        return [*maps[1:], *([merged[0]] if merged else [])], tokens, positions


def drop_path_rates(rate: float, blocks: int) -> tuple[float, ...]:
    """Returns the rates of stochastic depth of all blocks, from 0 to `rate`.

    >>> drop_path_rates(0.2, 3)
    (0.0, 0.1, 0.2)
    """
    return tuple(rate * i / max(blocks - 1, 1) for i in range(blocks))


def layer_norm(name: str, dtype: jnp.dtype) -> layers.LayerNorm:
    """Returns a layer norm; its statistics are computed in float32."""
    # The two-pass variance: E[x^2] - E[x]^2 loses digits that the comparison with other programs needs.
    return layers.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name)
