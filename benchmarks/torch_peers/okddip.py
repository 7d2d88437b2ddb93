"""OKDDip with branches in PyTorch: the loss of `cdl_jax.methods.okddip`.

The weights are those of a run of ours.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_peers.resnet import Stem, Tail, fill


class OKDDip(nn.Module):
    """A stem, branches, and the attention of all branches except the last.

    The last branch is the leader.
    """

    clip = 0.0

    def __init__(self, config, variables, classes: int):
        super().__init__()
        net, self.config, self.options = config.network, config, config.okddip
        self.stem = _filled(Stem(net.depths, net.widths), variables["stem"])
        names = [name for name in variables if name.startswith("peer_")] + ["leader"]
        self.branches = nn.ModuleList(_filled(Tail(net.depths, net.widths, classes), variables[name]) for name in names)
        attention, dim = variables["attention"]["params"], net.widths[-1]
        width = max(dim // self.options.head_divisor, 1)
        self.query, self.key = (fill(nn.Linear(dim, width, bias=False), attention[name]) for name in ("query", "key"))

    def groups(self, fused: bool):
        """One optimizer for all; nothing is clipped."""
        optim, every = self.config.optim, list(self.parameters())
        sgd = torch.optim.SGD(
            every, optim.learning_rate, optim.momentum, weight_decay=optim.weight_decay, nesterov=True, fused=fused
        )
        return [(sgd, every)]

    def loss(self, images, labels):
        """Returns (loss, the leader's logits).

        The loss sums every branch's cross-entropy and its divergence from its target.
        """
        shared = self.stem(images)
        logits, features = zip(*(branch(shared) for branch in self.branches), strict=True)
        rivals, leader = torch.stack(logits[:-1], dim=1), logits[-1]
        seen = torch.stack(features[:-1], dim=1)
        attention = (self.query(seen) @ self.key(seen).transpose(1, 2)).softmax(dim=-1)
        targets = attention @ rivals
        true = sum(F.cross_entropy(z, labels) for z in logits)
        group = sum(self._distilled(rivals[:, a], targets[:, a]) for a in range(rivals.shape[1]))
        group = group + self._distilled(leader, rivals.mean(dim=1))
        return true + self.options.alpha * group, leader.detach()

    def _distilled(self, logits, target):
        temperature = self.options.temperature
        p = F.softmax(target / temperature, dim=1) + 1e-7
        return temperature**2 * (p * (p.log() - F.log_softmax(logits / temperature, dim=1))).sum(dim=1).mean()


def _filled(module, network):
    return fill(module, network["params"], network["batch_stats"])
