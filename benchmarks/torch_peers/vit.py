"""Vision Transformer with prompts in any layer.

It computes the same as `cdl_jax.models.vit.ViT`, from the same weights.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

EPSILON = 1e-6


class Prompt(NamedTuple):
    """Keys and values of the prompts in one layer.

    Attributes:
        prefix: (keys, values) `[batch, length, dim]`, ahead of the tokens' own.
        suffix: (keys, values) `[batch, length, dim]`, behind the tokens' own.
        additive: (key, value), each `[dim]`, added to those of the class token.
    """

    prefix: tuple | None = None
    suffix: tuple | None = None
    additive: tuple | None = None


class Block(nn.Module):
    """Pre-norm block on `[batch, tokens, dim]`.

    fused: whether torch's own attention is used.
    """

    def __init__(self, dim: int, heads: int, hidden: int, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(dim, EPSILON), nn.LayerNorm(dim, EPSILON)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x, prompt: Prompt | None):
        x = x + self.proj(self.attend(*self.qkv(self.norm1(x)).chunk(3, dim=-1), prompt or Prompt()))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def attend(self, query, key, value, prompt):
        if prompt.additive is not None:
            key = torch.cat([key[:, :1] + prompt.additive[0], key[:, 1:]], dim=1)
            value = torch.cat([value[:, :1] + prompt.additive[1], value[:, 1:]], dim=1)
        key, value = (between(prompt, own, which) for which, own in enumerate((key, value)))
        batch, _, dim = query.shape
        query, key, value = (
            x.reshape(batch, -1, self.heads, dim // self.heads).transpose(1, 2) for x in (query, key, value)
        )
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key.to(query.dtype), value.to(query.dtype))
        else:
            scores = (query @ key.transpose(-2, -1)) * (dim // self.heads) ** -0.5
            mixed = scores.softmax(dim=-1) @ value
        return mixed.transpose(1, 2).reshape(batch, -1, dim)


def between(prompt: Prompt, own, which: int):
    """`own` keys (which=0) or values (which=1) with the prompt's around them."""
    parts = [pair[which] if pair is not None else None for pair in (prompt.prefix, prompt.suffix)]
    parts = [part for part in (parts[0], own, parts[1]) if part is not None]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class ViT(nn.Module):
    """Images `[batch, 3, size, size]` to final-normed tokens `[batch, tokens, dim]`.

    options: a section with the keys of `cdl_jax.models.vit.OPTIONS`. params: the weights, as that module has them.
    """

    def __init__(self, options, params, fused: bool):
        super().__init__()
        dim, patch = options.dim, options.patch_size
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.tensor(params["cls_token"]))
        self.pos_embed = nn.Parameter(torch.tensor(params["pos_embed"]))
        hidden = int(dim * options.mlp_ratio)
        self.blocks = nn.ModuleList(Block(dim, options.heads, hidden, fused) for _ in range(options.depth))
        self.norm = nn.LayerNorm(dim, EPSILON)
        self._fill(params, patch)

    def forward(self, images, prompts=None, last_tokens=None, correlation: bool = False):
        """Computes the tokens of images.

        prompts: layer -> `Prompt`. last_tokens: `[batch, n, dim]`, behind the patches, without position.
        """
        prompts = prompts or {}
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.pos_embed
        if last_tokens is not None:
            x = torch.cat([x, last_tokens], dim=1)
        for i, block in enumerate(self.blocks):
            x = block(x, prompts.get(i))
            if correlation and i < 5:
                unit = F.normalize(x.detach(), dim=-1)
                unit @ unit.transpose(1, 2)
        return self.norm(x)

    @torch.no_grad()
    def _fill(self, params, patch):
        kernel = torch.tensor(params["patch_embed"]["kernel"]).reshape(patch, patch, 3, -1)
        self.patch_embed.weight.copy_(kernel.permute(3, 2, 0, 1))
        self.patch_embed.bias.copy_(torch.tensor(params["patch_embed"]["bias"]))
        fill_norm(self.norm, params["norm"])
        for i, block in enumerate(self.blocks):
            own = params[f"block_{i}"]
            fill_norm(block.norm1, own["norm1"])
            fill_norm(block.norm2, own["norm2"])
            for part, names in (("attn", ("qkv", "proj")), ("mlp", ("fc1", "fc2"))):
                for name in names:
                    fill_linear(getattr(block, name), own[part][name])


def fill_norm(module, params):
    """Puts a layer norm's `scale` and `bias` into torch's."""
    module.weight.copy_(torch.tensor(params["scale"]))
    module.bias.copy_(torch.tensor(params["bias"]))


def fill_linear(module, params):
    """Puts a dense layer's `kernel` and `bias` into torch's."""
    module.weight.copy_(torch.tensor(params["kernel"]).T)
    module.bias.copy_(torch.tensor(params["bias"]))
