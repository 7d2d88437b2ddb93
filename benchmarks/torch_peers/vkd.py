"""VkD's step in PyTorch: a DeiT learns from a ResNet.

The DeiT has a convolutional stem. The weights are those of a run of ours.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import orthogonal

from benchmarks.torch_peers.resnet import Whole, conv, fill
from benchmarks.torch_peers.vit import EPSILON, Block


class Convolutions(nn.Module):
    """The three convolutions ahead of the patches."""

    def __init__(self, width: int):
        super().__init__()
        for i, (inputs, size, stride) in enumerate(((3, 7, 2), (width, 3, 1), (width, 3, 1)), 1):
            self.add_module(f"conv{i}", conv(inputs, width, size, stride))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))

    def forward(self, x):
        for i in (1, 2, 3):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return x


class DeiT(nn.Module):
    """Maps images to (class logits, distillation logits, mean patch).

    The second token is the mean of the patches.
    """

    def __init__(self, options, network, classes: int, fused: bool):
        super().__init__()
        params, dim, patch = network["params"], options.dim, options.patch_size // 2
        self.stem = fill(Convolutions(options.stem_width), params["stem"], network["batch_stats"]["stem"])
        self.conv_embed = fill(nn.Conv2d(options.stem_width, dim, patch, patch), params["conv_embed"])
        self.cls_token, self.pos_embed = (nn.Parameter(torch.tensor(params[n])) for n in ("cls_token", "pos_embed"))
        self.blocks = nn.ModuleList(
            Block(dim, options.heads, int(dim * options.mlp_ratio), fused) for _ in range(options.depth)
        )
        for i, block in enumerate(self.blocks):
            own = params[f"block_{i}"]
            fill(block, {**own["attn"], **own["mlp"], "norm1": own["norm1"], "norm2": own["norm2"]})
        self.norm = fill(nn.LayerNorm(dim, EPSILON), params["norm"])
        self.head, self.head_dist = (fill(nn.Linear(dim, classes), params[n]) for n in ("head", "head_dist"))

    def forward(self, images):
        patches = self.conv_embed(self.stem(images)).flatten(2).transpose(1, 2)
        tokens = [self.cls_token.expand(len(images), -1, -1), patches.mean(dim=1, keepdim=True), patches]
        x = torch.cat(tokens, dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x, None)
        x = self.norm(x)
        return self.head(x[:, 0]), self.head_dist(x[:, 1]), x[:, 2:].mean(dim=1)


class VkD(nn.Module):
    """Student, teacher and projection; fused: whether torch's own attention is used."""

    clip = 0.0

    def __init__(self, config, variables, classes: int, fused: bool):
        super().__init__()
        self.config, net, teacher = config, config.teacher, variables["teacher"]
        self.student = DeiT(config.student, variables["student"], classes, fused)
        self.teacher = fill(Whole(net.depths, net.widths, classes), teacher["params"], teacher["batch_stats"])
        self.teacher.eval().requires_grad_(False)
        raw = torch.tensor(variables["distill"]["params"]["projector"]["raw"])
        projector = nn.Linear(raw.shape[1], raw.shape[0], bias=False)
        self.projector = orthogonal(projector, orthogonal_map="householder")
        of_weight = self.projector.parametrizations.weight
        of_weight.original.data.copy_(raw)
        of_weight[0].base.copy_(torch.tensor(variables["distill"]["state"]["projector"]["base"]))

    def groups(self, fused: bool):
        """AdamW, whose decay reaches the student's matrices and kernels alone."""
        optim = self.config.optim
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        spared = [p for name, p in trained if p.ndim < 2 or any(word in name for word in optim.no_decay)]
        known = {id(p) for p in spared}
        decayed = [p for _, p in trained if id(p) not in known]
        groups = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, optim.learning_rate, weight_decay=optim.weight_decay, fused=fused)
        return [(adamw, decayed + spared)]

    def loss(self, images, labels):
        """Returns (loss, the class head's logits).

        The loss sums the weighted cross-entropy with smoothed labels, the feature's term and the logits' term.
        """
        options = self.config.distill
        with torch.no_grad():
            teacher_logits, feature = self.teacher(images)
        logits, distilled, patch = self.student(images)
        true = F.cross_entropy(logits, labels, label_smoothing=self.config.mixing.smoothing)
        wanted = F.layer_norm(feature, feature.shape[1:], eps=1e-5)
        like = F.smooth_l1_loss(self.projector(patch), wanted)
        ours, theirs = (F.log_softmax(z / options.temperature, dim=1) for z in (distilled, teacher_logits))
        divergence = options.temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        total = options.label_weight * true + options.feature_weight * like + options.logit_weight * divergence
        return total, logits.detach()
