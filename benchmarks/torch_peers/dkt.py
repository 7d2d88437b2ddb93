"""DKT's learners that teach each other at every step, in PyTorch.

The weights are those of a run of ours.
"""

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.torch_peers.resnet import Whole, fill


class Learner(nn.Module):
    """A network with two heads: (CL logits, ST logits)."""

    def __init__(self, depths, widths, variables, classes: int):
        super().__init__()
        params, stats = variables["params"], variables["batch_stats"]
        self.backbone = fill(Whole(depths, widths, classes), params["backbone"], stats["backbone"])
        self.student = fill(nn.Linear(widths[-1], classes), params["student"])

    def forward(self, images):
        cl, features = self.backbone(images)
        return cl, self.student(features)


class DKT(nn.Module):
    """Two learners; each one's ST head imitates the other as it was before the step."""

    def __init__(self, config, variables, classes: int):
        super().__init__()
        net, self.config = config.network, config
        widths = [net.width * 2**i for i in range(len(net.depths))]
        self.learners = nn.ModuleList(
            Learner(net.depths, widths, variables[f"learner_{i}"], classes) for i in range(config.dkt.num_learners)
        )
        self.clip = config.optim.clip_norm

    def groups(self, fused: bool):
        """An optimizer for each learner, its gradients clipped by their own norm."""
        rate, each = self.config.optim.learning_rate, [list(own.parameters()) for own in self.learners]
        return [(torch.optim.Adam(own, rate, fused=fused), own) for own in each]

    def loss(self, images, labels):
        """Returns (sum of the losses of all learners, logits of the first learner).

        Args:
            images: `[learners, batch, 3, size, size]`.
            labels: `[learners, batch]`.
        """
        with torch.no_grad():
            self.eval()
            peer_logits = [self.learners[1 - i](own)[0] for i, own in enumerate(images)]
            self.train()
        total, logits = 0.0, []
        for learner, own, label, target in zip(self.learners, images, labels, peer_logits, strict=True):
            cl, st = learner(own)
            total = total + F.cross_entropy(cl, label) + self.config.dkt.kd_rel * F.mse_loss(st, target)
            logits.append(cl.detach())
        return total, logits[0]
