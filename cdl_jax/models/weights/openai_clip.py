"""Renames the image encoder in files of OpenAI's CLIP to the names of timm's ViTs."""

import re
from collections.abc import Mapping

import numpy as np

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.\d+\.")
_ENCODER = "visual."  # the prefix of the image encoder; other tensors are of the text encoder
_TO_TIMM = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"^conv1\.", "patch_embed.proj."),
        (r"^class_embedding$", "cls_token"),
        (r"^positional_embedding$", "pos_embed"),
        (r"^ln_pre\.", "norm_pre."),
        (r"^ln_post\.", "norm."),
        (r"^proj$", "projection.weight"),
        (r"^transformer\.resblocks\.(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.attn\.in_proj_", ".attn.qkv."),
        (r"\.attn\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    ]
]


def to_timm(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the image encoder with timm's names and layouts.

    The tensors of other networks are unchanged. The text encoder is left out. The projection `[dim, outputs]` becomes
    `projection.weight` `[outputs, dim]`.

    >>> names = "visual.class_embedding", "visual.transformer.resblocks.0.ln_1.bias", "logit_scale"
    >>> {name: array.shape for name, array in to_timm(dict.fromkeys(names, np.zeros(8))).items()}
    {'cls_token': (1, 1, 8), 'blocks.0.norm1.bias': (8,)}

    Args:
      state: name -> array, with the prefix `visual.` or as the state dict of the image encoder alone.
    """
    if not any(_BLOCK.match(name) for name in state):
        return dict(state)
    if any(name.startswith(_ENCODER) for name in state):
        state = {name.removeprefix(_ENCODER): value for name, value in state.items() if name.startswith(_ENCODER)}
    renamed = {}
    for name, array in state.items():
        for pattern, replacement in _TO_TIMM:
            name = pattern.sub(replacement, name)
        if name in ("cls_token", "pos_embed"):
            array = array.reshape(1, -1, array.shape[-1])
        renamed[name] = array.T if name == "projection.weight" else array
    return renamed
