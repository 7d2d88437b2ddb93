"""ViDT's step in PyTorch: a Swin with detection tokens.

Deformable attention is computed by `grid_sample`, the matching by SciPy. Written from the published names and
equations. Images fill a batch up to its largest height and width, as on one device of the published program. Neither
dropout nor stochastic depth.
"""

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from cdl_jax.models.detection import state_dicts


class Attention(nn.Module):
    """Window attention of patches, and attention of detection tokens.

    Detection tokens attend to themselves and, in a cross stage, to all patches.
    """

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        y, x = (part.flatten() for part in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
        offsets = (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, patches, tokens, shift: int, cross):
        height, width = patches.shape[1:3]
        size = self.window
        x = F.pad(patches, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        x = x.unflatten(2, (columns, size)).unflatten(1, (rows, size)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        bias = self.relative_position_bias_table[self.offsets].permute(2, 0, 1)
        if shift:
            bias = bias + shift_mask(rows, columns, size, shift)[:, None]
        x = self._attend(*self._split(x), bias)
        x = x.unflatten(2, (size, size)).unflatten(1, (rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        query, key, value = self._split(tokens)
        bias = None
        if cross is not None:
            mask, positions = cross
            _, patch_key, patch_value = self._split((patches + positions).flatten(1, 2))
            key, value = torch.cat([patch_key, key], dim=-2), torch.cat([patch_value, value], dim=-2)
            bias = F.pad(mask.flatten(1).float() * -100, (0, tokens.shape[1]))[:, None, None]
        return self.proj(x[:, :height, :width]), self.proj(self._attend(query, key, value, bias))

    def _split(self, x):
        """Returns query, key and value, `[..., heads, tokens, channels]`."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)

    @staticmethod
    def _attend(query, key, value, bias):
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        weights = (logits if bias is None else logits + bias).softmax(dim=-1)
        return (weights @ value).transpose(-2, -3).flatten(-2)


def shift_mask(rows: int, columns: int, window: int, shift: int):
    """Returns the mask that separates the parts of shifted windows.

    It is `[windows, window^2, window^2]`, with values 0 or -100.
    """

    def labels(count):
        position = torch.arange(count * window)
        label = (position >= count * window - window).long() + (position >= count * window - shift).long()
        return label.view(count, window)

    regions = 3 * labels(rows)[:, None, :, None] + labels(columns)[None, :, None, :]
    regions = regions.reshape(rows * columns, window**2)
    return (regions[:, :, None] != regions[:, None]).float() * -100


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, options):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, options.window)
        self.det_pos_linear = nn.Linear(options.dim, dim)
        self.mlp = Mlp(dim, int(dim * options.mlp_ratio))

    def forward(self, patches, tokens, positions, shift, cross):
        mixed = self.attn(self.norm1(patches), self.norm1(tokens) + self.det_pos_linear(positions), shift, cross)
        parts = [x + y for x, y in zip((patches, tokens), mixed, strict=True)]
        return [x + self.mlp(self.norm2(x)) for x in parts]


class Merging(nn.Module):
    def __init__(self, dim: int, features: int):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, features, bias=False)

    def forward(self, patches, tokens):
        height, width = patches.shape[1:3]
        x = F.pad(patches, (0, 0, 0, width % 2, 0, height % 2))
        x = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
        return [self.reduction(self.norm(part)) for part in (x, tokens.repeat(1, 1, 4))]


class Stage(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, merged: int, options):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, heads, options) for _ in range(depth))
        self.downsample = Merging(dim, merged)


class PatchEmbedding(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, dim, 4, 4), nn.LayerNorm(dim)


class Backbone(nn.Module):
    """Images to four maps `[batch, height, width, channels]` and the detection tokens."""

    def __init__(self, options):
        super().__init__()
        self.options, width = options, options.embed_dim
        self.patch_embed = PatchEmbedding(width)
        self.det_token = nn.Parameter(torch.zeros(1, options.queries, width))
        self.det_pos_embed = nn.Parameter(torch.zeros(1, options.queries, options.dim))
        self.layers = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(options.depths, options.heads, strict=True)):
            merged = options.dim if i == 3 else 2 * width * 2**i
            self.layers.append(Stage(width * 2**i, depth, heads, merged, options))

    def forward(self, images, mask):
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        patches = self.patch_embed.norm(self.patch_embed.proj(images).permute(0, 2, 3, 1))
        quarter = [length // 8 for length in patches.shape[1:3]]
        tokens, maps = self.det_token.expand(len(images), -1, -1), []
        for i, stage in enumerate(self.layers):
            cross = None
            if i in self.options.cross_stages:
                of_stage = resize_mask(resize_mask(mask, quarter), patches.shape[1:3])
                cross = of_stage, sine_positions(of_stage, patches.shape[-1])
            for j, block in enumerate(stage.blocks):
                shift = self.options.window // 2 * (j % 2)
                patches, tokens = block(patches, tokens, self.det_pos_embed, shift, cross)
            maps.append(patches)
            last = tokens
            patches, tokens = stage.downsample(patches, tokens)
        return [*maps[1:], patches], last


def resize_mask(mask, size):
    return F.interpolate(mask[:, None].float(), size=tuple(size)).bool()[:, 0]


def sine_positions(mask, dim: int):
    """Returns sine positions `[batch, height, width, dim]`.

    They are sines and cosines of the share of the rows and columns so far.
    """
    count = dim // 2
    frequency = 10000.0 ** (2 * (torch.arange(count) // 2) / count)
    unmasked, parts = (~mask).float(), []
    for axis in (1, 2):
        total = unmasked.cumsum(axis)
        share = 2 * math.pi * total / (total.narrow(axis, total.shape[axis] - 1, 1) + 1e-6)
        angle = share[..., None] / frequency
        parts.append(torch.where(torch.arange(count) % 2 == 0, angle.sin(), angle.cos()))
    return torch.cat(parts, dim=-1)


class DeformableAttention(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.heads, self.points, dim = options.decoder_heads, options.points, options.dim
        samples = self.heads * 4 * self.points
        self.sampling_offsets, self.attention_weights = nn.Linear(dim, 2 * samples), nn.Linear(dim, samples)
        self.value_proj, self.output_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, query, references, maps, masks):
        """references: `[batch, queries, levels, 4]`."""
        shape = (self.heads, 4, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(dim=-1).unflatten(-1, shape[1:])
        boxes = references[:, :, None, :, None]
        locations = boxes[..., :2] + offsets / self.points * boxes[..., 2:] * 0.5
        total = 0.0
        for level, (x, mask) in enumerate(zip(maps, masks, strict=True)):
            value = self.value_proj(x).masked_fill(mask[..., None], 0.0).unflatten(-1, (self.heads, -1))
            value = value.permute(0, 3, 4, 1, 2).flatten(0, 1)
            grid = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            sampled = F.grid_sample(value, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            own = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            total = total + (sampled * own).sum(dim=-1)
        return self.output_proj(total.unflatten(0, (-1, self.heads)).flatten(1, 2).transpose(1, 2))


class DecoderLayer(nn.Module):
    def __init__(self, options):
        super().__init__()
        dim = options.dim
        self.self_attn = nn.MultiheadAttention(dim, options.decoder_heads, batch_first=True)
        self.cross_attn = DeformableAttention(options)
        self.linear1, self.linear2 = nn.Linear(dim, options.hidden), nn.Linear(options.hidden, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))

    def forward(self, x, positions, references, maps, masks):
        moved = x + positions
        x = self.norm2(x + self.self_attn(moved, moved, x, need_weights=False)[0])
        x = self.norm1(x + self.cross_attn(x + positions, references, maps, masks))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class Perceptron(nn.Module):
    def __init__(self, dim: int, features: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dim, size) for size in (dim, dim, features))

    def forward(self, x):
        for layer in self.layers[:2]:
            x = F.relu(layer(x))
        return self.layers[2](x)


def projection(inputs: int, dim: int):
    return nn.Sequential(nn.Conv2d(inputs, dim, 1), nn.GroupNorm(32, dim))


class Transformer(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(DecoderLayer(options) for _ in range(options.decoder_layers))
        self.reference_points = nn.Linear(options.dim, 2)


class Detector(nn.Module):
    """Maps images and their padding masks to logits and boxes of all levels.

    The boxes are refined from level to level.
    """

    def __init__(self, options, classes: int):
        super().__init__()
        dim, levels = options.dim, options.decoder_layers + 1
        widths = [options.embed_dim * 2**i for i in (1, 2, 3)]
        self.backbone, self.transformer = Backbone(options), Transformer(options)
        self.input_proj = nn.ModuleList(projection(width, dim) for width in (*widths, dim))
        self.tgt_proj, self.query_pos_proj = projection(widths[-1], dim), projection(dim, dim)
        self.class_embed = nn.ModuleList(nn.Linear(dim, classes) for _ in range(levels))
        self.bbox_embed = nn.ModuleList(Perceptron(dim, 4) for _ in range(levels))

    def forward(self, images, mask):
        maps, tokens = self.backbone(images, mask)
        maps = [f(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for f, x in zip(self.input_proj, maps, strict=True)]
        masks = [resize_mask(mask, x.shape[1:3]) for x in maps]
        rows, columns = ([(~m).float().narrow(3 - axis, 0, 1).mean(axis) for m in masks] for axis in (1, 2))
        ratios = torch.stack([torch.cat([x, y], dim=1) for x, y in zip(columns, rows, strict=True)], dim=1)
        ratios = ratios.repeat(1, 1, 2)[:, None]
        x, positions = _of_tokens(self.tgt_proj, tokens), _of_tokens(self.query_pos_proj, self.backbone.det_pos_embed)
        first = inverse_sigmoid(self.transformer.reference_points(positions).sigmoid())
        boxes = [(self.bbox_embed[0](x) + F.pad(first, (0, 2))).sigmoid()]
        logits = [self.class_embed[0](x)]
        for i, layer in enumerate(self.transformer.decoder.layers, 1):
            reference = boxes[-1].detach()
            x = layer(x, positions, reference[:, :, None] * ratios, maps, masks)
            boxes.append((self.bbox_embed[i](x) + inverse_sigmoid(reference)).sigmoid())
            logits.append(self.class_embed[i](x))
        return logits, boxes


def _of_tokens(project, tokens):
    return project(tokens.transpose(1, 2)[..., None])[..., 0].transpose(1, 2)


def inverse_sigmoid(x):
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


class ViDT(nn.Module):
    """The detector with its loss and optimizer, from the weights of a run of ours."""

    def __init__(self, config, variables, classes: int):
        super().__init__()
        self.config, self.clip = config, config.optim.clip_norm
        self.detector = Detector(config.student, classes)
        state = state_dicts.to_torch(variables["student"]["params"])
        self.detector.load_state_dict({name: torch.tensor(array) for name, array in state.items()})

    def groups(self, fused: bool):
        """Returns AdamW and its parameters.

        Vectors of the backbone have no decay, nor do the detection tokens and their positions.
        """
        optim, spared, decayed = self.config.optim, [], []
        for name, parameter in self.detector.named_parameters():
            in_backbone = name.startswith("backbone.")
            is_spared = in_backbone and (parameter.ndim == 1 or name.endswith(("det_token", "det_pos_embed")))
            (spared if is_spared else decayed).append(parameter)
        groups = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
        adamw = torch.optim.AdamW(groups, optim.learning_rate, weight_decay=optim.weight_decay, fused=fused)
        return [(adamw, decayed + spared)]

    def loss(self, images, mask, labels, boxes):
        """Computes the sum of the losses of all levels.

        Args:
            images: `[batch, 3, height, width]`, normalized.
            mask: bool `[batch, height, width]`, True at padding.
            labels: of each image, int64 `[objects]`.
            boxes: of each image, `[objects, 4]`.
        """
        logits, predicted = self.detector(images, mask)
        objects = max(sum(map(len, labels)), 1)
        total = sum(self._level_loss(*pair, labels, boxes, objects) for pair in zip(logits, predicted, strict=True))
        return total, logits[-1].detach()

    def _level_loss(self, logits, predicted, labels, boxes, objects):
        options = self.config.vidt
        images, queries, targets = match(options, logits.detach(), predicted.detach(), labels, boxes)
        one_hot = torch.zeros_like(logits)
        one_hot[images, queries, torch.cat(labels)[targets]] = 1.0
        found, wanted = predicted[images, queries], torch.cat(boxes)[targets]
        losses = (
            focal_loss(options, logits, one_hot).sum(),
            (found - wanted).abs().sum(),
            (1 - giou(found, wanted)).sum(),
        )
        weights = options.class_weight, options.box_weight, options.giou_weight
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / objects


def focal_loss(options, logits, targets):
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    miss = p * (1 - targets) + (1 - p) * targets
    alpha = options.focal_alpha * targets + (1 - options.focal_alpha) * (1 - targets)
    return alpha * losses * miss**options.focal_gamma


def corners(boxes):
    return boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2


def giou(boxes, others):
    (first, last), (other_first, other_last) = corners(boxes), corners(others)
    shared = (torch.minimum(last, other_last) - torch.maximum(first, other_first)).clamp(min=0).prod(dim=-1)
    union = (last - first).prod(dim=-1) + (other_last - other_first).prod(dim=-1) - shared
    hull = (torch.maximum(last, other_last) - torch.minimum(first, other_first)).prod(dim=-1)
    return shared / union - (hull - union) / hull


def match(options, logits, predicted, labels, boxes):
    """Returns images, queries and targets of all pairs of one level.

    Targets are numbered over the batch.
    """
    sizes = [len(own) for own in labels]
    p, wanted = logits.sigmoid(), torch.cat(boxes)
    hit = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    miss = 0.75 * p**2 * -(1 - p + 1e-8).log()
    classes = (hit - miss)[..., torch.cat(labels)]
    distances = torch.cdist(predicted.flatten(0, 1), wanted, p=1).view(*predicted.shape[:2], -1)
    costs = options.class_cost * classes + options.box_cost * distances
    costs = (costs - options.giou_cost * giou(predicted[:, :, None], wanted)).cpu()
    images, queries, targets, first = [], [], [], 0
    for image, own in enumerate(costs.split(sizes, dim=-1)):
        rows, columns = linear_sum_assignment(own[image].numpy())
        images, queries, targets = images + [image] * len(rows), [*queries, *rows], [*targets, *(columns + first)]
        first += sizes[image]
    return tuple(torch.as_tensor(np.array(part, np.int64)) for part in (images, queries, targets))
