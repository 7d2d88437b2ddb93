"""Vision Transformer (Dosovitskiy et al., 2021) with prompts in any layer.

Intermediate outputs are returned by name.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.tree_util import Partial
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.models.modules import attention, layers
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option
from cdl_jax.runtime import target

OPTIONS = {
    **shared_options("vit", image_size=224, weights=""),
    "dim": Option(768, "width of a token", minimum=1),
    "depth": Option(12, "number of blocks", minimum=1),
    "heads": Option(12, "attention heads of a block", minimum=1),
    "mlp_ratio": Option(4.0, "hidden width of a block's MLP, relative to `dim`"),
    "patch_size": Option(16, "side of a patch in pixels", minimum=1),
    "layer_scale": Option(0.0, "initial value of LayerScale; 0: no LayerScale"),
    "drop_path": Option(
        0.0, "rate of stochastic depth in the last block; the rate of earlier blocks decreases linearly to 0", below=1
    ),
    "dtype": Option(
        "auto",
        "dtype of the computation; bfloat16 computes softmax and norm statistics in float32; auto: bfloat16 on "
        "NVIDIA GPUs from Ampere on, float32 elsewhere",
        choices=("auto", "float32", "bfloat16"),
    ),
    "attention": Option(
        "auto",
        "cudnn: one fused kernel that stores no scores, for NVIDIA GPUs and bfloat16; xla: products and a softmax; "
        "auto: cudnn where it exists",
        choices=("auto", "xla", "cudnn"),
    ),
    "remat": Option(False, "recompute each block in the backward pass instead of storing it"),
}

SIZES = {
    "vit_ti16": {"dim": 192, "depth": 12, "heads": 3, "patch_size": 16, "image_size": 224},
    "vit_s16": {"dim": 384, "depth": 12, "heads": 6, "patch_size": 16, "image_size": 224},
    "vit_b16": {"dim": 768, "depth": 12, "heads": 12, "patch_size": 16, "image_size": 224},
    "vit_l16": {"dim": 1024, "depth": 24, "heads": 16, "patch_size": 16, "image_size": 224},
    # DINOv2-small; set layer_scale.
    "vit_s14": {"dim": 384, "depth": 12, "heads": 6, "patch_size": 14, "image_size": 224},
    "glyph_teacher": {"dim": 128, "depth": 6, "heads": 4, "patch_size": 8, "image_size": 32},
    "glyph_student": {"dim": 64, "depth": 5, "heads": 2, "patch_size": 8, "image_size": 32},
    "mini_teacher": {"dim": 96, "depth": 4, "heads": 3, "patch_size": 8, "image_size": 32},
    "mini_student": {"dim": 48, "depth": 3, "heads": 2, "patch_size": 8, "image_size": 32},
}

torch_name = None  # its files have timm's names, see `weights.pretrained`

_xavier = nn.initializers.xavier_uniform()


@struct.dataclass
class Prompt:
    """The prompt of one attention layer.

    All but `tokens` are applied after the projection to keys and values.

    Attributes:
      prefix: (keys, values), each `[batch, length, dim]`, inserted before the keys and values of the tokens. Queries
        and thus the number of tokens are unchanged (prefix tuning, Li and Liang, 2021).
      suffix: (keys, values), each `[batch, length, dim]`, inserted behind the keys and values of the tokens.
      additive: (key, value), each `[dim]`, added to those of the class token (APT, Chen et al., 2025).
      tokens: `[length, dim]`, tokens at the input of the block that only this block reads: its norm and projection
        make keys and values of them, before those of the prefix (VPT-deep, Jia et al., 2022). All images share them.
    """

    prefix: tuple[jax.Array, jax.Array] | None = None
    suffix: tuple[jax.Array, jax.Array] | None = None
    additive: tuple[jax.Array, jax.Array] | None = None
    tokens: jax.Array | None = None


@struct.dataclass
class Adapter:
    """Functions that change the residual branches of one block.

    Each is a `jax.tree_util.Partial` of a function `(arrays, x, y) -> y` and its arrays, or None: no change. x is the
    input of the branch, `[batch, tokens, dim]`, before its norm. y is the output of the branch, of the same shape,
    which the residual connection adds to x. So a parallel adapter is a function of x, a sequential one of y.

    Attributes:
      attention: of the branch with the attention.
      mlp: of the branch with the MLP.
      is_tokenwise: whether the functions change each token by itself, so that they may be applied to some tokens alone.
        Default False: the last block then computes all tokens, even if only the class token is read.
    """

    attention: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    mlp: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    is_tokenwise: bool = struct.field(pytree_node=False, default=False)


def merge_prompts(first: Mapping[int, Prompt], second: Mapping[int, Any]) -> dict[int, Any]:
    """Merges two sets of prompts layer by layer.

    In a layer that both sets prompt, prefixes and suffixes of `first` come before those of `second`, and additive
    prompts are added.

    Args:
      first: layer -> Prompt.
      second: layer -> Prompt, or a function from the class token to it (see `ViT`).

    Returns:
      Layer -> Prompt or function, for the layers of both sets.

    >>> prefix = (jnp.ones((1, 2, 4)), jnp.ones((1, 2, 4)))
    >>> merged = merge_prompts({0: Prompt(prefix=prefix)}, {0: Prompt(prefix=prefix), 1: Prompt()})
    >>> merged[0].prefix[0].shape, sorted(merged)
    ((1, 4, 4), [0, 1])
    """
    merged = dict(first)
    for layer, prompt in second.items():
        old = merged.get(layer, Prompt())
        merged[layer] = Partial(_merge_later, old, prompt) if callable(prompt) else _merge(old, prompt)
    return merged


def _merge(first, second):
    def merge_pairs(a, b, join):
        return b if a is None else a if b is None else tuple(join(x, y) for x, y in zip(a, b, strict=True))

    def join_tokens(x, y):
        return jnp.concatenate([x, y], axis=1)

    return Prompt(
        prefix=merge_pairs(first.prefix, second.prefix, join_tokens),
        suffix=merge_pairs(first.suffix, second.suffix, join_tokens),
        additive=merge_pairs(first.additive, second.additive, jnp.add),
        tokens=_join_present(first.tokens, second.tokens),
    )


def _join_present(*rows):
    """Returns the rows that are not None as one array, None if there are none."""
    present = [row for row in rows if row is not None]
    return jnp.concatenate(present) if present else None


def _merge_later(first, function, class_token):
    return _merge(first, function(class_token))


class LayerScale(layers.ReadsParams, nn.Module):
    """Multiplies each channel of a residual branch by a learned gain.

    Touvron et al. (2021).
    """

    initial: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],)).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with optional prompts; softmax in float32."""

    heads: int
    dtype: jnp.dtype
    init: Callable = _xavier
    implementation: str = "xla"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        prompt: Prompt | None = None,
        class_index: int = 0,
        prompt_tokens: jax.Array | None = None,
        read: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Computes attention among tokens and prompts.

        Args:
          x: `[batch, tokens, dim]`.
          prompt: of this layer, default None.
          class_index: position of the class token, default 0.
          prompt_tokens: `[length, dim]`, the prompt's `tokens` after the norm, default None.
          read: `[batch, n, dim]`, tokens of x whose outputs are also computed on their own, default None.

        Returns:
          (tokens `[batch, tokens, dim]`, attention weights float32 `[batch, heads, tokens, tokens]`, outputs of `read`
          `[batch, n, dim]` or None). The weights are those of the tokens; without prompts each row sums to 1.
        """
        dim, length = x.shape[-1], x.shape[1]
        project = Projection((dim, dim, dim), self.dtype, self.init, name="qkv")
        # Queries of `read` have a product of their own. Then XLA drops that of all queries where nothing reads them.
        query, key, value = project(x) if read is None else (*project(x, 0, 1), *project(x, 1, 3))
        prefix_length = 0
        if prompt is not None:
            if prompt.additive is not None:
                key = key.at[:, class_index].add(prompt.additive[0].astype(key.dtype))
                value = value.at[:, class_index].add(prompt.additive[1].astype(value.dtype))
            key = _insert_prompt(prompt, key, 0)
            value = _insert_prompt(prompt, value, 1)
            prefix_length = 0 if prompt.prefix is None else prompt.prefix[0].shape[1]
        if prompt_tokens is not None:
            pair = (jnp.broadcast_to(rows, (len(x), *rows.shape)) for rows in project(prompt_tokens, 1, 3))
            key, value = (jnp.concatenate(parts, axis=1) for parts in zip(pair, (key, value), strict=True))
            prefix_length += len(prompt_tokens)
        query, key, value = (attention.split_heads(t, self.heads) for t in (query, key, value))
        merge = _dense(dim, self.dtype, "proj", self.init)
        # A fused attention has no weights. XLA computes them for a caller that reads them, and drops them otherwise.
        weights = attention.weights(query, key)
        mixed = attention.mix(query, key, value, weights, self.implementation)
        tokens, weights = merge(mixed)[:, :length], weights[..., prefix_length : prefix_length + length]
        if read is None:
            return tokens, weights, None
        (query,) = (attention.split_heads(t, self.heads) for t in project(read, 0, 1))
        # So few queries have scores of no size.
        return tokens, weights, merge(attention.mix(query, key, value, attention.weights(query, key), "xla"))


class Projection(layers.ReadsParams, nn.Module):
    """A dense layer with several outputs, any of which can be computed alone.

    Attributes:
      widths: of the outputs.
      dtype: of the computation.
      init: initializer of the kernel `[inputs, sum of widths]`.
    """

    widths: tuple[int, ...]
    dtype: jnp.dtype
    init: Callable

    @nn.compact
    def __call__(self, x: jax.Array, first: int = 0, end: int | None = None) -> list[jax.Array]:
        """Returns outputs `first` to `end` - 1, by default all, each `[..., width]`."""
        total = sum(self.widths)
        kernel = self.param("kernel", self.init, (x.shape[-1], total))
        bias = self.param("bias", nn.initializers.zeros, (total,))
        starts = (0, *itertools.accumulate(self.widths))
        chosen = starts[first : len(starts) if end is None else end + 1]
        kernel, bias = (leaf[..., chosen[0] : chosen[-1]] for leaf in (kernel, bias))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        outputs, inner = x @ kernel + bias, [start - chosen[0] for start in chosen[1:-1]]
        return jnp.split(outputs, inner, axis=-1) if inner else [outputs]  # jax2onnx has no split into one part


def _insert_prompt(prompt, tokens, index):
    """Returns keys or values of the tokens with those of the prompt around them.

    `index` is 0 for keys and 1 for values.
    """
    parts = (prompt.prefix and prompt.prefix[index], tokens, prompt.suffix and prompt.suffix[index])
    return jnp.concatenate([part.astype(tokens.dtype) for part in parts if part is not None], axis=1)


def gelu(x: jax.Array) -> jax.Array:
    """Computes the exact GELU, in float32, and rounds it once to the dtype of x.

    In bfloat16, 1 + erf would lose all its digits for x below -2.

    >>> f"{gelu(jnp.float32(1)):.4f}"
    '0.8413'
    """
    # Not flax's gelu: that is made of erfc, an exponential and two quotients, and doubles the time of the function.
    wide = x.astype(jnp.float32)
    return (wide * (1 + jax.lax.erf(wide * 0.5**0.5)) / 2).astype(x.dtype)


def quick_gelu(x: jax.Array) -> jax.Array:
    """Computes `x sigmoid(1.702 x)`, CLIP's approximation of GELU.

    It is computed in float32 and rounded to the dtype of x.

    >>> f"{quick_gelu(jnp.float32(1)):.4f}"
    '0.8458'
    """
    wide = x.astype(jnp.float32)
    return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


class MLP(nn.Module):
    """Two dense layers with an activation, by default the exact (erf) GELU."""

    hidden: int
    dtype: jnp.dtype
    init: Callable = _xavier
    activation: Callable = gelu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = _dense(self.hidden, self.dtype, "fc1", self.init)(x)
        return _dense(x.shape[-1], self.dtype, "fc2", self.init)(self.activation(hidden))


class Block(nn.Module):
    """Pre-norm Transformer block.

    Attributes:
      heads: number of attention heads.
      mlp_ratio: hidden width of the MLP over `dim`.
      layer_scale: initial value of LayerScale; 0: no LayerScale.
      drop_path: probability that a residual branch is dropped for an image in training.
      dtype: of the computation.
      init: initializer of the kernels.
      attention: implementation, "xla" or "cudnn".
      activation: of the MLP, default `gelu`.
      norm_epsilon: added to the variance in the norms, default 1e-6.
    """

    heads: int
    mlp_ratio: float
    layer_scale: float
    drop_path: float
    dtype: jnp.dtype
    init: Callable = _xavier
    attention: str = "xla"
    activation: Callable = gelu
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        prompt: Prompt | None,
        class_index: int,
        train: bool,
        adapter: Adapter | None = None,
        read: tuple[int, int] | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Computes the block, and some of its tokens once more on their own.

        Args:
          x: `[batch, tokens, dim]`.
          prompt: of this layer.
          class_index: position of the class token.
          train: whether residual branches are dropped.
          adapter: of this block, default None.
          read: (n, m): the first n and the last m tokens are also computed on their own; default None.

        Returns:
          The tokens `[batch, tokens, dim]`, the attention weights (see `Attention`), and the tokens of `read`
          `[batch, n + m, dim]` or None. Both arrays of tokens have the same values. Each costs nothing once compiled if
          the caller does not use it.
        """
        adapter = adapter or Adapter(is_tokenwise=True)
        is_split = read is not None and adapter.is_tokenwise
        attend = Attention(self.heads, self.dtype, self.init, self.attention, name="attn")
        norm = layer_norm("norm1", self.norm_epsilon)
        tokens = None if prompt is None or prompt.tokens is None else norm(prompt.tokens.astype(x.dtype))
        normed = norm(x)
        attended, weights, attended_rows = attend(
            normed, prompt, class_index, tokens, _ends(normed, *read) if is_split else None
        )
        add = self._residual_sum(1, adapter.attention, train)
        rows = add(_ends(x, *read), attended_rows) if is_split else None
        x = add(x, attended)
        norm, hidden = layer_norm("norm2", self.norm_epsilon), int(x.shape[-1] * self.mlp_ratio)
        mlp = MLP(hidden, self.dtype, self.init, self.activation, name="mlp")
        add = self._residual_sum(2, adapter.mlp, train)
        rows = add(rows, mlp(norm(rows))) if is_split else None
        x = add(x, mlp(norm(x)))
        return x, weights, rows if is_split or read is None else _ends(x, *read)

    def _residual_sum(self, number, adapt, train):
        """Returns the function that adds the output of a branch to its input.

        It drops the branch of the same images each time.
        """
        scale = LayerScale(self.layer_scale, name=f"layer_scale{number}") if self.layer_scale else None
        dropout = nn.Dropout(self.drop_path, broadcast_dims=(1, 2)) if self.drop_path and train else None
        key = dropout.make_rng("dropout") if dropout else None  # one draw an image (Huang et al., 2016)

        def add(x, y):
            y = scale(y) if scale else y
            y = dropout(y, deterministic=False, rng=key) if dropout else y
            return x + (adapt(x, y).astype(x.dtype) if adapt else y)

        return add


def _ends(x, first, last):
    """Returns the first and the last tokens of `[batch, tokens, dim]`."""
    return jnp.concatenate([x[:, :first], x[:, x.shape[1] - last :]], axis=1) if last else x[:, :first]


class ViT(nn.Module):
    """Class-token ViT: `apply(variables, images)` returns `(logits, out)`."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    patch_size: int = 16
    image_size: int = 224
    layer_scale: float = 0.0
    drop_path: float = 0.0
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    attention: str = "xla"

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        prompts: Mapping[int, Prompt | Callable[[jax.Array], Prompt]] | None = None,
        first_tokens: jax.Array | None = None,
        last_tokens: jax.Array | None = None,
        prompt_tokens: jax.Array | None = None,
        train: bool = False,
        adapters: Mapping[int, Adapter] | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes logits and named intermediate outputs.

        Tokens are in the order `prompt_tokens`, `first_tokens`, class token, patches in row-major order,
        `last_tokens`. Inserted tokens have no position embedding. The outputs of class token and patches have the same
        positions with and without them.

        Args:
          images: float32 `[batch, image_size, image_size, 3]`.
          prompts: layer -> Prompt, or a `jax.tree_util.Partial` that returns it from the class token `[batch, dim]` at
            the input of the block; default none.
          first_tokens: `[batch, n, dim]`, inserted before the class token of block 0, default none.
          last_tokens: `[batch, n, dim]`, inserted behind the patches of block 0, default none.
          prompt_tokens: `[batch, n, dim]`, inserted before all other tokens of block 0, default none.
          train: whether residual branches are dropped, default False.
          adapters: layer -> Adapter, default none.

        Returns:
          logits: float32 `[batch, num_classes]`, or the features of the class token `[batch, dim]` if `num_classes`
            is 0.
          out: the outputs below by name. An output that the caller does not use costs nothing once compiled.

            patches: `[batch, patches, dim]`, embedded, without position.
            class_token_<i>: `[batch, dim]`, the class token at the input of block i.
            block_<i>/tokens: `[batch, 1 + patches, dim]`, class token and patches after block i, before the final
              norm.
            attention_<i>: float32 `[batch, heads, 1 + patches, 1 + patches]`, the softmax weights of block i, from
              queries (rows) to keys (columns), of class token and patches. Each row sums to 1 without prompts and
              inserted tokens.
            tokens: `[batch, 1 + patches, dim]`, class token and patches after the final norm.
            prompt_tokens, first_tokens, last_tokens: float32 `[batch, n, dim]`, after the final norm, if they are
              given.
            class_token: float32 `[batch, dim]`, after the final norm.

          The last block computes the tokens that are no patches on their own. Its MLP and its queries of the patches
          are computed only for a caller of `tokens`, `block_<last>/tokens` or `attention_<last>`.
        """
        prompts, adapters = prompts or {}, adapters or {}
        batch, patch, grid = images.shape[0], self.patch_size, self.image_size // self.patch_size
        # A dense layer on flattened patches equals the strided convolution and is the faster of the two on CPU.
        patches = images.astype(self.dtype).reshape(batch, grid, patch, grid, patch, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, grid * grid, patch * patch * 3)
        x = _dense(self.dim, self.dtype, "patch_embed")(patches)
        out = {"patches": x}
        class_token = self.param("cls_token", nn.initializers.zeros, (1, 1, self.dim))
        position = self.param("pos_embed", nn.initializers.normal(0.02), (1, 1 + grid * grid, self.dim))
        x = jnp.concatenate([jnp.tile(class_token, (batch, 1, 1)).astype(x.dtype), x], axis=1) + position.astype(
            x.dtype
        )
        num_prompts = 0 if prompt_tokens is None else prompt_tokens.shape[1]
        class_index = num_prompts + (0 if first_tokens is None else first_tokens.shape[1])
        own = slice(class_index, class_index + 1 + grid * grid)  # class token and patches
        parts = (prompt_tokens, first_tokens, x, last_tokens)
        x = jnp.concatenate([part.astype(x.dtype) for part in parts if part is not None], axis=1)

        block = nn.remat(Block, static_argnums=(3, 4, 6)) if self.remat else Block
        num_last = 0 if last_tokens is None else last_tokens.shape[1]
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            sizes = self.heads, self.mlp_ratio, self.layer_scale, rate, self.dtype
            layer = block(*sizes, attention=self.attention, name=f"block_{i}")
            prompt = prompts.get(i)
            out[f"class_token_{i}"] = x[:, class_index]
            if callable(prompt):
                prompt = prompt(out[f"class_token_{i}"])
            read = (class_index + 1, num_last) if i == self.depth - 1 else None
            x, weights, rows = layer(x, prompt, class_index, train, adapters.get(i), read)
            out[f"block_{i}/tokens"] = x[:, own]
            out[f"attention_{i}"] = weights[:, :, own, own]
        norm = layer_norm("norm")
        out["tokens"], rows = norm(x)[:, own], norm(rows).astype(jnp.float32)
        parts = jnp.split(rows, [num_prompts, class_index, class_index + 1], axis=1)
        names = ("prompt_tokens", "first_tokens", "class_token", "last_tokens")
        out |= {name: part for name, part in zip(names, parts, strict=True) if part.shape[1]}
        out["class_token"] = out["class_token"][:, 0]
        if not self.num_classes:
            return out["class_token"], out
        return _dense(self.num_classes, jnp.float32, "head")(out["class_token"]), out


def check_sizes(network: str, options: ConfigDict) -> None:
    """Checks that heads divide channels and that patches divide images.

    Args:
      network: name of the network, for messages.
      options: a section with `dim`, `heads`, `image_size` and `patch_size`.

    Raises:
      UserError: heads or patches leave a rest.
    """
    if options.dim % options.heads:
        raise UserError(f"{network} dim={options.dim} cannot be split over heads={options.heads}: choose a multiple")
    if options.image_size % options.patch_size:
        raise UserError(
            f"{network} image_size={options.image_size} is not a multiple of patch_size={options.patch_size}: change "
            "one of them"
        )


def build(options: ConfigDict, num_classes: int = 0) -> ViT:
    """Returns the ViT of an option section (see `OPTIONS`).

    Args:
      options: a section with the keys of `OPTIONS`.
      num_classes: number of logits. 0, the default: no head, the features of the class token are returned.

    Raises:
      UserError: options do not fit together.
    """
    check_sizes("ViT", options)
    if int(options.dim * options.mlp_ratio) < 1:
        raise UserError(f"ViT mlp_ratio={options.mlp_ratio} gives the MLP a hidden width of 0: raise it")
    dtype = target.compute_dtype(options.dtype)
    return ViT(
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        mlp_ratio=options.mlp_ratio,
        patch_size=options.patch_size,
        image_size=options.image_size,
        layer_scale=options.layer_scale,
        drop_path=options.drop_path,
        num_classes=num_classes,
        dtype=jnp.dtype(dtype),
        remat=options.remat,
        attention=attention.choose(options.attention, dtype, options.dim // options.heads),
    )


def layer_norm(name: str, epsilon: float = 1e-6) -> layers.LayerNorm:
    """Returns the layer norm of the family.

    `epsilon` is added to the variance, default 1e-6.
    """
    # The two-pass variance: E[x^2] - E[x]^2 loses digits that the comparison with other programs needs.
    return layers.LayerNorm(epsilon=epsilon, use_fast_variance=False, name=name)


def _dense(features, dtype, name, init=_xavier):
    return layers.Dense(features, dtype=dtype, kernel_init=init, name=name)
