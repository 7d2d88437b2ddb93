"""Vision Transformer (Dosovitskiy et al., 2021) that takes prompts in any layer and names its intermediates."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax.errors import UserError

OPTIONS = {
    "family": "vit",
    "dim": 768,
    "depth": 12,
    "heads": 12,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
    "layer_scale": 0.0,  # initial value of LayerScale; 0 leaves it out
    "drop_path": 0.0,  # stochastic depth of the last block; earlier ones linearly less
    "dtype": "float32",  # of the computation; "bfloat16" keeps softmax and norm statistics in float32
    "attention": "xla",  # or "cudnn": fused, never storing scores; needs a GPU and bfloat16
    "remat": False,  # recompute each block in the backward pass instead of storing it
    "weights": "",  # a file, its folder, a timm name that is fetched, "package:NAME", or "random"
    "weights_key": "",  # of a checkpoint with several networks, such as "model_ema"
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
    """What one attention layer gets beside its tokens, after the query/key/value projection.

    prefix, suffix: (keys, values), each `[batch, length, dim]`, put before and behind the tokens' own keys and values;
      queries are unchanged, so the number of tokens is too (prefix tuning, Li and Liang, 2021).
    additive: (key, value), each `[dim]`, added to those of the class token (APT, Chen et al., 2025).
    """

    prefix: tuple[jax.Array, jax.Array] | None = None
    suffix: tuple[jax.Array, jax.Array] | None = None
    additive: tuple[jax.Array, jax.Array] | None = None


def merge_prompts(first: Mapping[int, Prompt], second: Mapping[int, Prompt]) -> dict[int, Prompt]:
    """Both sets of prompts, layer by layer; `first` stands before `second` where both have a prefix or a suffix."""

    def both(a, b, join):
        return b if a is None else a if b is None else tuple(join(x, y) for x, y in zip(a, b, strict=True))

    def tokens(x, y):
        return jnp.concatenate([x, y], axis=1)

    merged = dict(first)
    for layer, prompt in second.items():
        old = merged.get(layer, Prompt())
        merged[layer] = Prompt(
            prefix=both(old.prefix, prompt.prefix, tokens),
            suffix=both(old.suffix, prompt.suffix, tokens),
            additive=both(old.additive, prompt.additive, jnp.add),
        )
    return merged


class LayerScale(nn.Module):
    """Per-channel gain of a residual branch (Touvron et al., 2021)."""

    initial: float

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(self.initial), (x.shape[-1],)).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention over `[batch, tokens, dim]`, with optional prompts; softmax in float32."""

    heads: int
    dtype: jnp.dtype
    init: nn.initializers.Initializer = _xavier
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x, prompt: Prompt | None = None, class_index: int = 0):
        batch, length, dim = x.shape
        qkv = _dense(3 * dim, self.dtype, "qkv", self.init)(x)
        query, key, value = jnp.split(qkv, 3, axis=-1)
        if prompt is not None:
            if prompt.additive is not None:
                key = key.at[:, class_index].add(prompt.additive[0].astype(key.dtype))
                value = value.at[:, class_index].add(prompt.additive[1].astype(value.dtype))
            key = _between(prompt, key, 0)
            value = _between(prompt, value, 1)
        query, key, value = (t.reshape(batch, -1, self.heads, dim // self.heads) for t in (query, key, value))
        if self.implementation == "cudnn":
            mixed = jax.nn.dot_product_attention(query, key, value, implementation="cudnn")
        else:  # not by the same function, which takes 2.5 times as long on a CPU
            scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
            weights = nn.softmax(scores * (dim // self.heads) ** -0.5, axis=-1).astype(value.dtype)
            mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return _dense(dim, self.dtype, "proj", self.init)(mixed.reshape(batch, length, dim))


def _between(prompt, own, which):
    """`own` keys (which=0) or values (which=1) with the prompt's around them."""
    parts = (prompt.prefix and prompt.prefix[which], own, prompt.suffix and prompt.suffix[which])
    return jnp.concatenate([part.astype(own.dtype) for part in parts if part is not None], axis=1)


class MLP(nn.Module):
    """Two dense layers with exact (erf) GELU."""

    hidden: int
    dtype: jnp.dtype
    init: nn.initializers.Initializer = _xavier

    @nn.compact
    def __call__(self, x):
        hidden = _dense(self.hidden, self.dtype, "fc1", self.init)(x)
        # Not flax's gelu: that is made of erfc, an exponential and two quotients, and doubles the time of the function.
        hidden = hidden * (1 + jax.lax.erf(hidden * 0.5**0.5)) / 2
        return _dense(x.shape[-1], self.dtype, "fc2", self.init)(hidden)


class Block(nn.Module):
    """Pre-norm Transformer block on `[batch, tokens, dim]`."""

    heads: int
    mlp_ratio: float
    layer_scale: float
    drop_path: float
    dtype: jnp.dtype
    init: nn.initializers.Initializer = _xavier  # of the kernels
    attention: str = "xla"

    @nn.compact
    def __call__(self, x, prompt, class_index, train):
        def branch(y, which):
            if self.layer_scale:
                y = LayerScale(self.layer_scale, name=f"layer_scale{which}")(y)
            if self.drop_path and train:  # one draw a picture (Huang et al., 2016)
                y = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=False)(y)
            return y

        hidden = int(x.shape[-1] * self.mlp_ratio)
        attention = Attention(self.heads, self.dtype, self.init, self.attention, name="attn")
        x = x + branch(attention(norm("norm1")(x), prompt, class_index), 1)
        return x + branch(MLP(hidden, self.dtype, self.init, name="mlp")(norm("norm2")(x)), 2)


class ViT(nn.Module):
    """Class-token ViT. `apply(variables, images)` returns `(logits, out)`.

    images: `[batch, image_size, image_size, 3]`.
    logits: `[batch, num_classes]` float32, or the class token's features `[batch, dim]` where `num_classes` is 0.
    out: `patches` `[batch, patches, dim]` (embedded, without position), `block_<i>/tokens` `[batch, tokens, dim]`
      (after block i, before the final norm), `tokens` (final-normed) and `class_token` `[batch, dim]` (final-normed).
      What is not used costs nothing once compiled.
    prompts: layer -> Prompt. first_tokens, last_tokens: `[batch, n, dim]`, put before the class token and behind the
      patches ahead of block 0, without position embedding.
    prompt_tokens: `[batch, n, dim]`, likewise, ahead of all others. Their outputs are `prompt_tokens` (final-normed,
      float32); all else that is called tokens is without them, so that a picture's tokens keep their places.
    """

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
        images,
        prompts: Mapping[int, Prompt] | None = None,
        first_tokens=None,
        last_tokens=None,
        prompt_tokens=None,
        train=False,
    ):
        prompts = prompts or {}
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
        ahead, class_index = (0 if tokens is None else tokens.shape[1] for tokens in (prompt_tokens, first_tokens))
        parts = (prompt_tokens, first_tokens, x, last_tokens)
        x = jnp.concatenate([part.astype(x.dtype) for part in parts if part is not None], axis=1)

        block = nn.remat(Block, static_argnums=(3, 4)) if self.remat else Block
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            sizes = self.heads, self.mlp_ratio, self.layer_scale, rate, self.dtype
            layer = block(*sizes, attention=self.attention, name=f"block_{i}")
            x = layer(x, prompts.get(i), ahead + class_index, train)
            out[f"block_{i}/tokens"] = x[:, ahead:]
        x = norm("norm")(x)
        out["tokens"] = x[:, ahead:]
        if ahead:
            out["prompt_tokens"] = x[:, :ahead].astype(jnp.float32)
        out["class_token"] = out["tokens"][:, class_index].astype(jnp.float32)
        if not self.num_classes:
            return out["class_token"], out
        return _dense(self.num_classes, jnp.float32, "head")(out["class_token"]), out


def build(options, num_classes: int = 0) -> ViT:
    """The module that an option section (see `OPTIONS`) describes.

    Raises:
      UserError: sizes that do not fit together.
    """
    if options.dim % options.heads:
        raise UserError(f"ViT dim={options.dim} cannot be split over heads={options.heads}: choose a multiple")
    if options.image_size % options.patch_size:
        raise UserError(
            f"ViT image_size={options.image_size} is no multiple of patch_size={options.patch_size}: change one of them"
        )
    if not 0 <= options.drop_path < 1:
        raise UserError(f"ViT drop_path={options.drop_path} must lie within [0, 1)")
    if int(options.dim * options.mlp_ratio) < 1:
        raise UserError(f"ViT mlp_ratio={options.mlp_ratio} leaves no unit between the layers: raise it")
    if options.dtype not in ("float32", "bfloat16"):
        raise UserError(f"ViT dtype={options.dtype!r}: use 'float32' or 'bfloat16'")
    if options.attention not in ("xla", "cudnn"):
        raise UserError(f"ViT attention={options.attention!r}: use 'xla' or 'cudnn'")
    if options.attention == "cudnn" and (options.dtype != "bfloat16" or jax.default_backend() != "gpu"):
        raise UserError(
            f"ViT attention='cudnn' needs an NVIDIA GPU and dtype='bfloat16' (here: {jax.default_backend()} and "
            f"{options.dtype}): use 'xla'"
        )
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
        dtype=jnp.dtype(options.dtype),
        remat=options.remat,
        attention=options.attention,
    )


def norm(name):
    """The family's layer norm."""
    # The two-pass variance: E[x^2] - E[x]^2 loses digits that the comparison with other programs needs.
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)


def _dense(features, dtype, name, init=_xavier):
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)
