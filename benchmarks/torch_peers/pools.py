"""Prompt pools and heads in PyTorch.

They compute the same as `cdl_jax.models.learners` and `cdl_jax.models.modules.heads`. A pool is called with
`(query [batch, key_dim], task, train)` and gives `({layer: Prompt}, loss)`. Its parameters bear the names that they
have there.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_peers.vit import Prompt


def halves(rows):
    """Returns the prefix (keys, values) of prompts `[batch, length, dim]`.

    The first half of a prompt has the keys, the rest the values.
    """
    return rows[:, : rows.shape[1] // 2], rows[:, rows.shape[1] // 2 :]


class Pool(nn.Module):
    """Base of the prompt pools.

    Args:
        options: the learner's section.
        params: the learner's parameters.
        state: the learner's state.
        tasks: number of tasks of the stream.
    """

    def __init__(self, options, params, state, tasks: int):
        super().__init__()
        self.options, self.tasks = options, tasks
        self.rows = nn.ParameterDict({name: nn.Parameter(torch.tensor(value)) for name, value in params.items()})
        for name, value in state.items():
            self.register_buffer(name, torch.tensor(value))


class L2P(Pool):
    """Selects the top-k keys of each image, in layer 0 alone or in the first five."""

    def forward(self, query, task: int, train: bool):
        prompts, loss, query, k = {}, 0.0, F.normalize(query, dim=1), self.options.top_k
        for layer in range(5 if self.options.deep else 1):
            values = self.rows[f"prompts_{layer}"]
            similarity = query @ F.normalize(self.rows[f"keys_{layer}"], dim=1).T
            chosen = similarity.topk(k, dim=1).indices
            if train:
                loss = loss + (1 - similarity.gather(1, chosen)).sum(dim=1).mean()
            picked, half = values[chosen], values.shape[1] // 2
            prefix = (picked[:, :, :half], picked[:, :, half:])
            prompts[layer] = Prompt(prefix=tuple(part.flatten(1, 2) for part in prefix))
        return prompts, loss


class DualPrompt(Pool):
    """General prompts, and expert ones by task in training, by key at test time."""

    def forward(self, query, task: int, train: bool):
        prompts, loss, query, general = {}, 0.0, F.normalize(query, dim=1), self.options.general_layers
        for layer in range(general):
            prompts[layer] = Prompt(prefix=halves(self.rows[f"general_{layer}"].expand(len(query), -1, -1)))
        for layer in range(general, general + self.options.expert_layers):
            values = self.rows[f"prompts_{layer}"]
            similarity = query @ F.normalize(self.rows[f"keys_{layer}"], dim=1).T
            if train:
                loss = loss + (1 - similarity[:, task]).mean()
                picked = values[task].expand(len(query), -1, -1)
            else:
                picked = values[similarity.argmax(dim=1)]
            prompts[layer] = Prompt(prefix=halves(picked))
        return prompts, loss


class CODA(Pool):
    """Weighted sums of the components of all tasks so far.

    The components of earlier tasks are constants in training.
    """

    def forward(self, query, task: int, train: bool):
        prompts, each = {}, self.options.pool // self.tasks
        for layer in range(self.options.layers):
            values, keys, attention = (
                self._live(self.rows[f"{name}_{layer}"], task * each, (task + 1) * each, train)
                for name in ("prompts", "keys", "attention")
            )
            attended = F.normalize(query[:, None] * attention, dim=-1)
            weights = torch.einsum("bkd,kd->bk", attended, F.normalize(keys, dim=-1))
            prompts[layer] = Prompt(prefix=halves(torch.einsum("bk,kld->bld", weights, values)))
        return prompts, 0.0

    def _live(self, rows, first, end, train):
        return torch.cat([rows[:first].detach(), rows[first:end]]) if train and first else rows[:end]


class APT(Pool):
    """Vectors added to the class token's key and value in every block.

    The evaluated vectors are the merged average.
    """

    teaching = False  # the trained prompt is evaluated instead of the average

    def forward(self, query, task: int, train: bool):
        rows = self.rows["prompts"] if train or self.teaching else self.merged
        return {i: Prompt(additive=(rows[2 * i], rows[2 * i + 1])) for i in range(len(rows) // 2)}, 0.0


POOLS = {"l2p": L2P, "dualprompt": DualPrompt, "coda": CODA, "apt": APT}


class Head(nn.Module):
    """Computes logits `[batch, classes]` of features.

    The head is a linear layer, or APT's cosine of class vectors and normed features.
    """

    def __init__(self, params):
        super().__init__()
        self.cosine = "linear" not in params
        own = params if self.cosine else params["linear"]
        self.kernel, self.bias = (nn.Parameter(torch.tensor(own[name])) for name in ("kernel", "bias"))

    def forward(self, features):
        if not self.cosine:
            return features @ self.kernel + self.bias
        return F.layer_norm(features, features.shape[1:], eps=1e-5) @ F.normalize(self.kernel, dim=0) + self.bias
