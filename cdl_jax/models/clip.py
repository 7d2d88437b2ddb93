"""The image encoder of CLIP's Vision Transformers (Radford et al., 2021).

It differs from `vit.ViT` in a layer norm before the blocks, an activation `x sigmoid(1.702 x)`, an epsilon of 1e-5 and
a projection of the class token without bias. Pixels are normalized by `MEAN` and `STD` in CLIP, and in [-1, 1] in
KD-DLGAN. Source: model.py of openai/CLIP.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.models import vit
from cdl_jax.models.modules import attention
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option
from cdl_jax.runtime import target

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

OPTIONS = {
    **shared_options("clip", image_size=224),
    "dim": Option(768, "width of a token", minimum=1),
    "depth": Option(12, "number of blocks", minimum=1),
    "heads": Option(12, "attention heads of a block", minimum=1),
    "patch_size": Option(32, "side of a patch in pixels", minimum=1),
    "output_dim": Option(512, "width of the projected features", minimum=1),
    "dtype": Option(
        "auto",
        "dtype of the blocks; bfloat16 computes softmax and norm statistics in float32; auto: bfloat16 on NVIDIA GPUs "
        "from Ampere on, float32 elsewhere",
        choices=("auto", "float32", "bfloat16"),
    ),
}

SIZES = {"clip_vit_b32": {}}

_EPSILON, _MLP_RATIO = 1e-5, 4.0


class Clip(nn.Module):
    """CLIP's image encoder: `apply(variables, images)` returns `(logits, out)`."""

    dim: int
    depth: int
    heads: int
    patch_size: int
    image_size: int
    output_dim: int
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes logits and named intermediate outputs.

        Args:
          images: float32 `[batch, image_size, image_size, 3]`.
          train: without effect; there is no dropout.

        Returns:
          logits: float32 `[batch, num_classes]`, of a linear head on the features, which CLIP's files do not have. The
            features themselves if `num_classes` is 0.
          out: the outputs below by name.

            block_<i>/tokens: `[batch, tokens, dim]`, after block i; the class token first.
            attention_<i>: float32 `[batch, heads, tokens, tokens]`, see `vit.ViT`.
            class_token: float32 `[batch, dim]`, after the last norm.
            features: float32 `[batch, output_dim]`, the projected class token, not normalized.

          The last block computes the class token on its own, as that of `vit.ViT` does.
        """
        batch, scale = len(images), self.dim**-0.5
        embed = nn.Conv(
            self.dim, (self.patch_size,) * 2, strides=self.patch_size, padding="VALID", use_bias=False,
            name="patch_embed",
        )  # fmt: skip
        x = embed(images).reshape(batch, -1, self.dim)
        class_token = self.param("cls_token", nn.initializers.normal(scale), (1, 1, self.dim))
        position = self.param("pos_embed", nn.initializers.normal(scale), (1, 1 + x.shape[1], self.dim))
        x = jnp.concatenate([jnp.tile(class_token, (batch, 1, 1)), x], axis=1) + position
        x, out = vit.layer_norm("norm_pre", _EPSILON)(x).astype(self.dtype), {}
        for i in range(self.depth):
            block = vit.Block(
                self.heads, _MLP_RATIO, 0.0, 0.0, self.dtype, attention=self.attention, activation=vit.quick_gelu,
                norm_epsilon=_EPSILON, name=f"block_{i}",
            )  # fmt: skip
            x, out[f"attention_{i}"], rows = block(x, None, 0, train, None, (1, 0) if i == self.depth - 1 else None)
            out[f"block_{i}/tokens"] = x
        out["class_token"] = vit.layer_norm("norm", _EPSILON)(rows[:, 0]).astype(jnp.float32)
        project = nn.Dense(
            self.output_dim, use_bias=False, kernel_init=nn.initializers.normal(scale), name="projection"
        )
        out["features"] = project(out["class_token"])
        if not self.num_classes:
            return out["features"], out
        return nn.Dense(self.num_classes, name="head")(out["features"]), out


def build(options: ConfigDict, num_classes: int) -> Clip:
    """Returns the network of an option section (see `OPTIONS`).

    Raises:
      UserError: sizes do not fit together.
    """
    vit.check_sizes("CLIP", options)
    fields = {key: value for key, value in options.items() if key not in ("family", "weights", "weights_key", "dtype")}
    dtype = target.compute_dtype(options.dtype)
    implementation = attention.choose("auto", dtype, options.dim // options.heads)
    return Clip(**fields, num_classes=num_classes, dtype=jnp.dtype(dtype), attention=implementation)


def torch_name(path: str) -> str:
    """Returns the name of a module after `openai_clip.to_timm`; "" for the head.

    >>> torch_name("block_0/attn/qkv"), torch_name("patch_embed"), torch_name("head")
    ('blocks.0.attn.qkv', 'patch_embed.proj', '')
    """
    if path == "head":
        return ""
    return "patch_embed.proj" if path == "patch_embed" else path.replace("block_", "blocks.").replace("/", ".")
