"""Data-efficient image Transformers (Touvron et al., 2021), with a distillation token and with a convolutional stem.

VkD's student is the one of Co-advise (Ren et al., 2022): three convolutions come before the patches, and the
distillation token is the mean of the embedded patches, no parameter.
"""

import flax.linen as nn
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models import vit
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import conv, he_in
from cdl_jax.models.modules.heads import torch_bias, torch_kernel

OPTIONS = {
    "family": "deit",
    "dim": 192,
    "depth": 12,
    "heads": 3,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
    "stem_width": 64,  # channels of the convolutions ahead of the patches; 0: none, as in DeiT
    "distillation": "mean",  # the second token: the patches' "mean", a "learned" one (DeiT), or "none"
    "drop_path": 0.0,  # stochastic depth of the last block; earlier ones linearly less
    "dtype": "float32",  # of the Transformer's computation; "bfloat16" keeps softmax and norm statistics in float32
    "remat": False,  # recompute each block in the backward pass instead of storing it
    "weights": "random",  # or a file of timm's names
    "weights_key": "",  # of a checkpoint with several networks, such as "model_ema"
}

_DIMS = {"ti": (192, 3), "s": (384, 6), "b": (768, 12)}
SIZES = {
    **{f"deit_{size}_conv": {"dim": dim, "heads": heads} for size, (dim, heads) in _DIMS.items()},
    **{
        f"deit_{size}{end}": {"dim": dim, "heads": heads, "stem_width": 0, "distillation": token}
        for size, (dim, heads) in _DIMS.items()
        for end, token in (("_distilled", "learned"), ("", "none"))
    },
}

# timm cuts its normal numbers at 100 standard deviations, that is, not at all.
_normal = nn.initializers.normal(0.02)


class Stem(nn.Module):
    """`[batch, size, size, 3]` to `[batch, size / 2, size / 2, width]`: a 7x7 convolution at stride 2, two of 3x3."""

    width: int

    @nn.compact
    def __call__(self, x, train):
        for i, (size, stride) in enumerate(((7, 2), (3, 1), (3, 1)), 1):
            x = conv(self.width, size, stride, name=f"conv{i}", init=he_in)(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train))
        return x


class DeiT(nn.Module):
    """`apply(variables, images, train=...)` gives `(logits, out)`.

    images: float32 `[batch, image_size, image_size, 3]`.
    logits: float32 `[batch, num_classes]`, the mean of both heads' where there is a distillation token.
    out: `logits_class` and `logits_distilled`, those of either head; `patches` `[batch, patches, dim]` (embedded,
      without position); `block_<i>/tokens` (after block i); after the final norm `tokens` `[batch, tokens, dim]`,
      `class_token`, `distillation_token` `[batch, dim]` and `patch_tokens` `[batch, patches, dim]`, which are tokens
      in row-major order behind the other two.
    """

    dim: int
    depth: int
    heads: int
    mlp_ratio: float
    patch_size: int
    image_size: int
    stem_width: int
    distillation: str
    drop_path: float
    num_classes: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images, train: bool = False):
        batch, patch, x = len(images), self.patch_size, images
        if self.stem_width:
            x, patch = Stem(self.stem_width, name="stem")(x, train), patch // 2
        fan_in = patch * patch * x.shape[-1]
        embed = nn.Conv(
            self.dim, (patch, patch), strides=patch, padding="VALID", bias_init=torch_bias(fan_in),
            kernel_init=he_in if self.stem_width else torch_kernel,
            name="conv_embed" if self.stem_width else "patch_embed",
        )  # fmt: skip
        patches = embed(x).reshape(batch, -1, self.dim).astype(self.dtype)
        out = {"patches": patches}
        first = [self.param("cls_token", nn.initializers.normal(1e-6 if self.stem_width else 0.02), (1, 1, self.dim))]
        first = [jnp.tile(first[0], (batch, 1, 1))]
        if self.distillation == "mean":
            first.append(patches.mean(axis=1, keepdims=True))
        elif self.distillation == "learned":
            first.append(jnp.tile(self.param("dist_token", _normal, (1, 1, self.dim)), (batch, 1, 1)))
        before = len(first)
        position = self.param("pos_embed", _normal, (1, before + patches.shape[1], self.dim))
        x = jnp.concatenate([*(token.astype(self.dtype) for token in first), patches], axis=1)
        x = x + position.astype(self.dtype)
        block = nn.remat(vit.Block, static_argnums=(3, 4)) if self.remat else vit.Block
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            layer = block(self.heads, self.mlp_ratio, 0.0, rate, self.dtype, _normal, name=f"block_{i}")
            x, out[f"attention_{i}"] = layer(x, None, 0, train)
            out[f"block_{i}/tokens"] = x
        x = vit.layer_norm("norm")(x).astype(jnp.float32)
        out |= {"tokens": x, "class_token": x[:, 0], "patch_tokens": x[:, before:]}

        def head(name, token):
            return nn.Dense(self.num_classes, kernel_init=_normal, name=name)(token)

        out["logits_class"] = head("head", out["class_token"])
        if before == 1:
            return out["logits_class"], out
        out["distillation_token"] = x[:, 1]
        out["logits_distilled"] = head("head_dist", out["distillation_token"])
        return (out["logits_class"] + out["logits_distilled"]) / 2, out


def build(options, num_classes: int) -> DeiT:
    """The module that an option section (see `OPTIONS`) describes.

    Raises:
      UserError: sizes that do not fit together, or an unknown kind of distillation token.
    """
    if options.dim % options.heads:
        raise UserError(f"DeiT dim={options.dim} cannot be split over heads={options.heads}: choose a multiple")
    if options.image_size % options.patch_size or (options.stem_width and options.patch_size % 2):
        raise UserError(
            f"image_size={options.image_size} must be a multiple of patch_size={options.patch_size}, which is even "
            "with a stem: change one of them"
        )
    if options.distillation not in ("mean", "learned", "none"):
        raise UserError(f"DeiT distillation={options.distillation!r}: use 'mean', 'learned' or 'none'")
    if options.dtype not in ("float32", "bfloat16"):
        raise UserError(f"DeiT dtype={options.dtype!r}: use 'float32' or 'bfloat16'")
    shape = {key: value for key, value in options.items() if key not in ("family", "weights", "weights_key", "dtype")}
    return DeiT(**shape, num_classes=num_classes, dtype=jnp.dtype(options.dtype))


def torch_name(path: str) -> str:
    """The original programs' name of a module: `block_0/attn/qkv` -> `blocks.0.attn.qkv`."""
    if path in ("conv_embed", "patch_embed"):
        return f"{path}.proj"
    if path.startswith("stem/"):
        kind, number = path[5:-1], int(path[-1])
        return f"conv_embed.conv.{3 * (number - 1) + (kind == 'bn')}"
    return path.replace("block_", "blocks.").replace("/", ".")
