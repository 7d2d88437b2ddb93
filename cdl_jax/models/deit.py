"""Data-efficient image Transformers (Touvron et al., 2021).

Options give them a distillation token and a convolutional stem.

VkD's student is that of Co-advise (Ren et al., 2022). Three convolutions come before the patches, and the distillation
token is the mean of the embedded patches instead of a parameter.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.models import vit
from cdl_jax.models.modules import attention
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import conv, he_in
from cdl_jax.models.modules.heads import torch_bias, torch_kernel
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option
from cdl_jax.runtime import target

OPTIONS = {
    **shared_options("deit", image_size=224),
    "dim": Option(192, "width of a token", minimum=1),
    "depth": Option(12, "number of blocks", minimum=1),
    "heads": Option(3, "attention heads of a block", minimum=1),
    "mlp_ratio": Option(4.0, "hidden width of a block's MLP, relative to `dim`"),
    "patch_size": Option(16, "side of a patch in pixels", minimum=1),
    "stem_width": Option(64, "channels of the convolutions before the patches; 0: no convolutions, as in DeiT"),
    "distillation": Option(
        "mean",
        "the second token: the patches' mean, a learned one (DeiT), or none",
        choices=("mean", "learned", "none"),
    ),
    "drop_path": Option(
        0.0, "rate of stochastic depth in the last block; the rate of earlier blocks decreases linearly to 0", below=1
    ),
    "dtype": Option(
        "auto",
        "dtype of the Transformer; bfloat16 computes softmax and norm statistics in float32; auto: bfloat16 on "
        "NVIDIA GPUs from Ampere on, float32 elsewhere",
        choices=("auto", "float32", "bfloat16"),
    ),
    "remat": Option(False, "recompute each block in the backward pass instead of storing it"),
}

_DIMS = {"ti": (192, 3), "s": (384, 6), "b": (768, 12)}
SIZES = {
    **{f"deit_{size}_conv": {"dim": dim, "heads": heads} for size, (dim, heads) in _DIMS.items()},
    **{
        f"deit_{size}{suffix}": {"dim": dim, "heads": heads, "stem_width": 0, "distillation": token}
        for size, (dim, heads) in _DIMS.items()
        for suffix, token in (("_distilled", "learned"), ("", "none"))
    },
}

# timm truncates its normal distribution at 100 standard deviations, which has no effect.
_normal = nn.initializers.normal(0.02)


class Stem(nn.Module):
    """A 7x7 convolution at stride 2 and two of 3x3.

    It maps `[batch, size, size, 3]` to `[batch, size / 2, size / 2, width]`.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i, (size, stride) in enumerate(((7, 2), (3, 1), (3, 1)), 1):
            x = conv(self.width, size, stride, name=f"conv{i}", init=he_in)(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train))
        return x


class DeiT(nn.Module):
    """DeiT: `apply(variables, images, train=...)` returns `(logits, out)`."""

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
    attention: str = "xla"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes logits and named intermediate outputs.

        Tokens are in the order class token, distillation token, patches in row-major order.

        Args:
          images: float32 `[batch, image_size, image_size, 3]`.
          train: whether residual branches are dropped and batch norms use the statistics of the batch, default False.

        Returns:
          logits: float32 `[batch, num_classes]`, with a distillation token the mean of the logits of both heads.
          out: the outputs below by name.

            logits_class, logits_distilled: float32 `[batch, num_classes]`, of each head.
            patches: `[batch, patches, dim]`, embedded, without position.
            block_<i>/tokens: `[batch, tokens, dim]`, after block i.
            attention_<i>: float32 `[batch, heads, tokens, tokens]`, the softmax weights of block i, from queries
              (rows) to keys (columns).
            tokens: `[batch, tokens, dim]`, after the final norm.
            class_token, distillation_token: `[batch, dim]`, after the final norm.
            patch_tokens: `[batch, patches, dim]`, after the final norm.

          The last block computes the tokens that are no patches on their own, as that of `vit.ViT` does.
        """
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
        class_token_init = nn.initializers.normal(1e-6 if self.stem_width else 0.02)
        class_token = self.param("cls_token", class_token_init, (1, 1, self.dim))
        first_tokens = [jnp.tile(class_token, (batch, 1, 1))]
        if self.distillation == "mean":
            first_tokens.append(patches.mean(axis=1, keepdims=True))
        elif self.distillation == "learned":
            first_tokens.append(jnp.tile(self.param("dist_token", _normal, (1, 1, self.dim)), (batch, 1, 1)))
        num_first = len(first_tokens)
        position = self.param("pos_embed", _normal, (1, num_first + patches.shape[1], self.dim))
        x = jnp.concatenate([*(token.astype(self.dtype) for token in first_tokens), patches], axis=1)
        x = x + position.astype(self.dtype)
        block = nn.remat(vit.Block, static_argnums=(3, 4, 6)) if self.remat else vit.Block
        for i in range(self.depth):
            rate = self.drop_path * i / max(self.depth - 1, 1)
            sizes = self.heads, self.mlp_ratio, 0.0, rate, self.dtype, _normal, self.attention
            layer = block(*sizes, name=f"block_{i}")
            read = (num_first, 0) if i == self.depth - 1 else None
            x, out[f"attention_{i}"], rows = layer(x, None, 0, train, None, read)
            out[f"block_{i}/tokens"] = x
        norm = vit.layer_norm("norm")
        x, rows = norm(x).astype(jnp.float32), norm(rows).astype(jnp.float32)
        out |= {"tokens": x, "class_token": rows[:, 0], "patch_tokens": x[:, num_first:]}

        def head(name, token):
            return nn.Dense(self.num_classes, kernel_init=_normal, name=name)(token)

        out["logits_class"] = head("head", out["class_token"])
        if num_first == 1:
            return out["logits_class"], out
        out["distillation_token"] = rows[:, 1]
        out["logits_distilled"] = head("head_dist", out["distillation_token"])
        return (out["logits_class"] + out["logits_distilled"]) / 2, out


def build(options: ConfigDict, num_classes: int) -> DeiT:
    """Returns the network of an option section (see `OPTIONS`).

    Raises:
      UserError: sizes do not fit together.
    """
    if options.dim % options.heads:
        raise UserError(f"DeiT dim={options.dim} cannot be split over heads={options.heads}: choose a multiple")
    if options.image_size % options.patch_size or (options.stem_width and options.patch_size % 2):
        raise UserError(
            f"image_size={options.image_size} must be a multiple of patch_size={options.patch_size}, which is even "
            "with a stem: change one of them"
        )
    if int(options.dim * options.mlp_ratio) < 1:
        raise UserError(f"DeiT mlp_ratio={options.mlp_ratio} gives the MLP a hidden width of 0: raise it")
    fields = {key: value for key, value in options.items() if key not in ("family", "weights", "weights_key", "dtype")}
    dtype = target.compute_dtype(options.dtype)
    implementation = attention.choose("auto", dtype, options.dim // options.heads)
    return DeiT(**fields, num_classes=num_classes, dtype=jnp.dtype(dtype), attention=implementation)


def torch_name(path: str) -> str:
    """Returns the name of a module in the original programs.

    >>> torch_name("block_0/attn/qkv"), torch_name("stem/bn2")
    ('blocks.0.attn.qkv', 'conv_embed.conv.4')
    """
    if path in ("conv_embed", "patch_embed"):
        return f"{path}.proj"
    if path.startswith("stem/"):
        kind, number = path[5:-1], int(path[-1])
        return f"conv_embed.conv.{3 * (number - 1) + (kind == 'bn')}"
    return path.replace("block_", "blocks.").replace("/", ".")
