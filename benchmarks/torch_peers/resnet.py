"""Residual networks for small images in PyTorch.

The two parts and the names are those of `cdl_jax.models.resnet`. `fill` copies our variables into any module whose
parts bear our names.
"""

import torch
from torch import nn
from torch.nn import functional as F


def conv(inputs: int, outputs: int, size: int, stride: int = 1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.projected = stride != 1 or inputs != width
        if self.projected:
            self.shortcut, self.shortcut_bn = conv(inputs, width, 1, stride), nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.shortcut_bn(self.shortcut(x)) if self.projected else x))


class Stages(nn.Module):
    """Blocks of the stages `numbers`, from 1; all but the first halve the image."""

    def __init__(self, numbers, depths, widths):
        super().__init__()
        inputs = widths[max(numbers[0] - 2, 0)]
        for number in numbers:
            width = widths[number - 1]
            for i in range(depths[number - 1]):
                self.add_module(f"layer{number}_{i}", Block(inputs, width, 2 if i == 0 and number > 1 else 1))
                inputs = width

    def forward(self, x):
        for block in self.children():
            x = block(x)
        return x


class Stem(nn.Module):
    """The first convolution and all stages but the last."""

    def __init__(self, depths, widths):
        super().__init__()
        self.conv1, self.bn1 = conv(3, widths[0], 3), nn.BatchNorm2d(widths[0])
        self.stages = Stages(range(1, len(depths)), depths, widths)

    def forward(self, images):
        return self.stages(F.relu(self.bn1(self.conv1(images))))


class Tail(nn.Module):
    """The last stage, the mean over the image and the classifier: (logits, features)."""

    def __init__(self, depths, widths, classes: int):
        super().__init__()
        self.stages = Stages([len(depths)], depths, widths)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x):
        features = self.stages(x).mean(dim=(2, 3))
        return self.classifier(features), features


class Whole(nn.Module):
    """Stem and tail: (logits, features)."""

    def __init__(self, depths, widths, classes: int):
        super().__init__()
        self.stem, self.tail = Stem(depths, widths), Tail(depths, widths, classes)

    def forward(self, images):
        return self.tail(self.stem(images))


@torch.no_grad()
def fill(module: nn.Module, params, stats=None) -> nn.Module:
    """`module` with our `params` and `batch_stats`, whose names its parts bear."""
    leaves = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for tree in (params, stats or {}):
        for name, value in tree.items():
            if hasattr(value, "items"):
                own = {part: value for part, value in ((stats or {}).get(name) or {}).items()} if tree is params else {}
                fill(getattr(module, name), value, own)
            elif name == "kernel":
                value = torch.tensor(value)
                module.weight.copy_(value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T)
            else:
                getattr(module, leaves.get(name, name)).copy_(torch.tensor(value))
    return module
