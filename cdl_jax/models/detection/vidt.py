"""ViDT: a Swin Transformer with detection tokens, and a decoder without encoder.

`apply(variables, images, sizes, extents)` returns a dict of predictions and intermediate outputs. Images lie in extents
and extents in canvases, see `masks`; the outputs depend on sizes and extents, not on the canvas.

Song et al. (2022).
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.models.detection import neck
from cdl_jax.models.detection.decoder import DecoderLayer
from cdl_jax.models.detection.deformable import IMPLEMENTATIONS
from cdl_jax.models.detection.masks import STRIDES, Extents, full_extents
from cdl_jax.models.detection.neck import CrossScaleFusion, Projection, wide
from cdl_jax.models.detection.swin import Swin, layer_norm
from cdl_jax.models.modules import layers
from cdl_jax.models.modules.heads import torch_bias, torch_kernel
from cdl_jax.options import Option

LEVELS = 4
_LEVEL_STRIDES = STRIDES[1:]
_NO_OBJECT = -math.log(99)  # logit of the probability 0.01

OPTIONS = {
    "embed_dim": Option(48, "channels of the first stage of the backbone", minimum=2),
    "depths": Option((2, 2, 6, 2), "number of blocks of each stage", minimum=1, lengths=(4,)),
    "heads": Option((3, 6, 12, 24), "attention heads of a block of each stage", minimum=1, lengths=(4,)),
    "window": Option(7, "side of an attention window in patches", minimum=2),
    "mlp_ratio": Option(4.0, "hidden width of a block's MLP, relative to the width of its stage", above=0),
    "drop_path": Option(
        0.0, "rate of stochastic depth in the last block; the rate of earlier blocks decreases linearly to 0", below=1
    ),
    "queries": Option(100, "number of detection tokens", minimum=1),
    "cross_stages": Option(
        (3,), "stages, from 0, whose detection tokens attend to patches", choices=(0, 1, 2, 3), item_type=int
    ),
    "dim": Option(256, "width of the tokens and maps of the neck", minimum=neck.GROUPS),
    "decoder_layers": Option(6, "number of layers of the decoder", minimum=1),
    "decoder_heads": Option(8, "attention heads of a layer of the decoder", minimum=1),
    "points": Option(4, "points that a head of the deformable attention samples in each map", minimum=1),
    "hidden": Option(1024, "hidden width of the MLPs of the decoder", minimum=1),
    "dropout": Option(0.1, "rate of dropout in the decoder", below=1),
    "box_refine": Option(True, "each level of the decoder refines the boxes of the level before"),
    "iou_aware": Option(False, "predict the IoU of each box"),
    "cross_scale_fusion": Option(False, "fuse the maps of all scales instead of projecting each map"),
    "token_label": Option(False, "predict the classes at each position of the maps"),
    "neck": Option(True, "False: heads on the tokens of the backbone, without a decoder"),
    "position_dim": Option(256, "width of the positions of detection tokens without a neck", minimum=1),
    "sampling": Option(
        "auto", "implementation of the deformable attention; auto: by the size of the maps", choices=IMPLEMENTATIONS
    ),
    "dtype": Option(
        "float32",
        "dtype of the computation; bfloat16, for a frozen teacher, has norms, softmax, boxes and logits in float32",
        choices=("float32", "bfloat16"),
    ),
    "remat": Option(False, "recompute each block of the backbone in the backward pass instead of storing it"),
}

SIZES = {
    "vidt_nano": {"embed_dim": 48, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "drop_path": 0.0},
    "vidt_tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "drop_path": 0.2},
    "vidt_small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24), "drop_path": 0.3},
    "vidt_base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32), "drop_path": 0.3},
}


def inverse_sigmoid(x: jax.Array) -> jax.Array:
    """Computes log(x / (1 - x)) of x within [0, 1], both parts at least 1e-5.

    >>> [round(float(logit), 2) for logit in inverse_sigmoid(jnp.array([0.5, 1.0]))]
    [0.0, 11.51]
    """
    x = x.clip(0, 1)
    return jnp.log(jnp.maximum(x, 1e-5) / jnp.maximum(1 - x, 1e-5))


class Perceptron(nn.Module):
    """Three linear layers with ReLU between them.

    Attributes:
      hidden: width of the first two layers.
      features: number of outputs.
      last_kernel: initializer of the last layer.
      last_bias: initializer of the last layer; None: that of torch.nn.Linear.
      key: random key of the initial weights. Modules with one key start equal. None: a key of their own.
      dtype: of the computation.
    """

    hidden: int
    features: int
    last_kernel: Callable = torch_kernel
    last_bias: Callable | None = None
    key: jax.Array | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        sizes = (self.hidden, self.hidden, self.features)
        for i, size in enumerate(sizes):
            kernel, bias = torch_kernel, torch_bias(x.shape[-1])
            if i == 2:
                kernel, bias = self.last_kernel, self.last_bias or bias
            x = layers.Dense(
                size,
                dtype=self.dtype,
                kernel_init=_with_key(kernel, self.key, 2 * i),
                bias_init=_with_key(bias, self.key, 2 * i + 1),
                name=f"layers_{i}",
            )(x)
            x = nn.relu(x) if i < 2 else x
        return x


def _with_key(init, key, number):
    """Returns the initializer with a fixed key instead of that of its parameter.

    If `key` is None, the initializer is unchanged.
    """
    if key is None:
        return init
    return lambda _, *shape_and_dtype: init(jax.random.fold_in(key, number), *shape_and_dtype)


class Heads(nn.Module):
    """Heads of classes, boxes and IoUs.

    With refinement each level has one of each. They start equal, except for the bias of the boxes of level 0.

    Attributes:
      num_classes: number of sigmoid outputs.
      levels: number of levels.
      dim: number of channels.
      box_refine: whether each level has its own heads. Without it level 0 has the heads of all.
      iou_aware: whether there are heads of IoUs.
      dtype: of the computation.
    """

    num_classes: int
    levels: int
    dim: int
    box_refine: bool
    iou_aware: bool
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        count, dtype = self.levels if self.box_refine else 1, self.dtype
        names = ("class", "box", "iou")
        keys = [self.make_rng("params") if self.is_initializing() else None for _ in names]
        kernel, bias = _with_key(torch_kernel, keys[0], 0), nn.initializers.constant(_NO_OBJECT)
        self.class_embed = [
            layers.Dense(self.num_classes, dtype=dtype, kernel_init=kernel, bias_init=bias) for _ in range(count)
        ]
        zeros = nn.initializers.zeros
        self.bbox_embed = [
            Perceptron(self.dim, 4, zeros, zeros if level else _small_boxes, keys[1], dtype) for level in range(count)
        ]
        if self.iou_aware:
            self.iou_embed = [Perceptron(self.dim, 1, key=keys[2], dtype=dtype) for _ in range(count)]

    def logits(self, level: int, x: jax.Array) -> jax.Array:
        """Returns the class logits of a level, `[batch, queries, num_classes]`."""
        return self._of_level(self.class_embed, level)(x)

    def boxes(self, level: int, x: jax.Array) -> jax.Array:
        """Returns the box changes of a level before the sigmoid, `[batch, queries, 4]`."""
        return self._of_level(self.bbox_embed, level)(x)

    def ious(self, level: int, x: jax.Array) -> jax.Array:
        """Returns the IoU logits of a level, `[batch, queries]`."""
        return self._of_level(self.iou_embed, level)(x)[..., 0]

    def _of_level(self, heads, level):
        return heads[level if self.box_refine else 0]


def _small_boxes(_, shape, dtype=jnp.float32):
    """Returns the initial bias of the boxes of level 0.

    Width and height are sigmoid(-2).
    """
    return jnp.array([0, 0, -2, -2], dtype)


class TokenLabels(nn.Module):
    """Class logits at each position of the maps.

    Features are 0 at padding and at positions close to the border.
    """

    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], levels: "Levels") -> tuple[jax.Array, ...]:
        """Returns the logits of each map, `[batch, height, width, num_classes]`.

        A map is `[batch, height, width, dim]`.
        """
        dim = maps[0].shape[-1]
        linear, norm = neck.torch_dense(dim, dim, self.dtype, "enc_output"), layer_norm("enc_output_norm", self.dtype)
        bias = nn.initializers.constant(_NO_OBJECT)
        classify = layers.Dense(
            self.num_classes, dtype=wide(self.dtype), kernel_init=torch_kernel, bias_init=bias, name="token_embed"
        )
        return tuple(
            classify(norm(linear(jnp.where((levels.proposals(i) & ~levels.masks[i])[..., None], x, 0))))
            for i, x in enumerate(maps)
        )


@struct.dataclass
class Levels:
    """Sizes and masks of the maps of the neck, one entry a level.

    Attributes:
      extents: int32 `[batch, levels, 2]`, (height, width).
      inside: bool `[batch, height, width]`, positions inside the extents.
      masks: bool `[batch, height, width]`, True at padding.
      ratios: float32 `[batch, levels, 2]`, (x, y), the unmasked part of the extents.
    """

    extents: jax.Array
    inside: tuple[jax.Array, ...]
    masks: tuple[jax.Array, ...]
    ratios: jax.Array

    @classmethod
    def from_maps(cls, maps: Sequence[jax.Array], extents: Extents) -> "Levels":
        """Returns the levels of the backbone's maps.

        Maps are `[batch, height, width, channels]`, fine to coarse.
        """
        pairs = [(stride, x.shape[1:3]) for stride, x in zip(_LEVEL_STRIDES, maps, strict=True)]
        return cls(
            jnp.stack([extents.of_map(stride) for stride, _ in pairs], axis=1),
            tuple(extents.inside(*pair) for pair in pairs),
            tuple(extents.mask(*pair) for pair in pairs),
            jnp.stack([extents.valid_ratios(*pair) for pair in pairs], axis=1),
        )

    def reverse(self) -> "Levels":
        """Returns the levels in the opposite order."""
        return Levels(self.extents[:, ::-1], self.inside[::-1], self.masks[::-1], self.ratios[:, ::-1])

    def proposals(self, level: int) -> jax.Array:
        """Returns the positions whose center and side are strictly in (0.01, 0.99).

        The center is relative to the image; the side is 0.05 * 2^level. Positions are bool `[batch, height, width]`.
        """
        if not 0.01 < 0.05 * 2**level < 0.99:
            return jnp.zeros_like(self.masks[level])
        unmasked = ~self.masks[level]
        indicators = []
        for axis in (1, 2):
            count = unmasked.any(axis=3 - axis).sum(axis=1, keepdims=True)
            center = (jnp.arange(unmasked.shape[axis]) + 0.5) / count
            indicators.append((center > 0.01) & (center < 0.99))
        return indicators[0][:, :, None] & indicators[1][:, None, :]


class ViDT(nn.Module):
    """ViDT with neck.

    Attributes are as in `OPTIONS`; `num_classes` is the number of sigmoid outputs of a query.
    """

    embed_dim: int
    depths: Sequence[int]
    heads: Sequence[int]
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dim: int = 256
    decoder_heads: int = 8
    decoder_layers: int = 6
    points: int = 4
    hidden: int = 1024
    dropout: float = 0.1
    queries: int = 100
    num_classes: int = 91
    cross_stages: Sequence[int] = (3,)
    box_refine: bool = True
    iou_aware: bool = False
    cross_scale_fusion: bool = False
    token_label: bool = False
    sampling: str = "auto"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        sizes: jax.Array | None = None,
        extents: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array | tuple[jax.Array, ...]]:
        """Computes predictions of all levels 0..decoder_layers.

        Level 0 is that of the backbone's tokens.

        Args:
          images: float32 `[batch, height, width, 3]`, normalized, 0 outside the sizes.
          sizes: int32 `[batch, 2]`, (height, width) of the images. Default None: the canvas.
          extents: int32 `[batch, 2]`, (height, width) of the extents. Default None: the canvas.
          train: whether values and residual branches are dropped, default False.

        Returns:
          The outputs below by name. An output that the caller does not use costs nothing once compiled. Maps are 0
          outside their extents; with cross-scale fusion they are coarse to fine, else fine to coarse.

            logits: float32 `[levels, batch, queries, num_classes]`.
            boxes: float32 `[levels, batch, queries, 4]`, (center x, center y, width, height) relative to the image.
            patch_maps: four maps `[batch, height, width, dim]`, after the projection.
            body_tokens: `[batch, queries, dim]`, tokens of the backbone after the projection.
            neck_tokens: `[levels, batch, queries, dim]`.
            backbone_maps: four maps of the backbone, fine to coarse.
            backbone_tokens: `[batch, queries, 8 * embed_dim]`.
            inside: positions inside the extents, bool `[batch, height, width]` of each of the `patch_maps`.
            masks: padding masks, bool `[batch, height, width]` of each of the `patch_maps`.
            points: float32 `[1, queries, 2]`, initial (x, y) of the queries.
            iou_logits: float32 `[levels, batch, queries]`, if `iou_aware`.
            token_logits: four maps float32 `[batch, height, width, num_classes]`, if `token_label`.
        """
        extents = _extents(images, sizes, extents)
        backbone_maps, backbone_tokens, token_positions = _backbone(self, self.dim, self.dim)(images, extents, train)
        maps, levels = self._project(backbone_maps, Levels.from_maps(backbone_maps, extents))
        tokens = Projection(self.dim, self.dtype, name="tgt_proj")(backbone_tokens)
        positions = Projection(self.dim, self.dtype, name="query_pos_proj")(token_positions)
        points = self._first_points(positions)
        predict = Heads(
            self.num_classes, self.decoder_layers + 1, self.dim, self.box_refine, self.iou_aware, wide(self.dtype),
            name="heads",
        )  # fmt: skip
        states, boxes = self._decode(predict, tokens, positions, points, maps, levels, train)
        out = {
            "logits": jnp.stack([predict.logits(i, x) for i, x in enumerate(states)]),
            "boxes": jnp.stack(boxes),
            "patch_maps": tuple(maps),
            "body_tokens": tokens,
            "neck_tokens": jnp.stack(states),
            "backbone_maps": tuple(backbone_maps),
            "backbone_tokens": backbone_tokens,
            "inside": levels.inside,
            "masks": levels.masks,
            "points": points,
        }
        if self.iou_aware:
            out["iou_logits"] = jnp.stack([predict.ious(i, x) for i, x in enumerate(states)])
        if self.token_label:
            out["token_logits"] = TokenLabels(self.num_classes, self.dtype, name="token_labels")(maps, levels)
        return out

    def _project(self, maps, levels):
        """Returns maps of `dim` channels and their levels."""
        if not self.cross_scale_fusion:
            projections = [Projection(self.dim, self.dtype, name=f"input_proj_{i}") for i in range(LEVELS)]
            return [f(x, inside) for f, x, inside in zip(projections, maps, levels.inside, strict=True)], levels
        extents = [levels.extents[:, i] for i in range(LEVELS)]
        fused = CrossScaleFusion(self.dim, self.dtype, name="fusion")(maps, levels.inside, extents)
        return fused, levels.reverse()

    def _first_points(self, positions):
        """Returns the initial (x, y) of the queries, float32 `[1, queries, 2]`."""
        xavier = nn.initializers.xavier_uniform()
        return nn.sigmoid(
            layers.Dense(
                2, dtype=wide(self.dtype), kernel_init=xavier, bias_init=torch_bias(self.dim), name="reference_points"
            )(positions)
        )

    def _decode(self, predict, tokens, positions, points, maps, levels, train):
        """Returns tokens and boxes of all levels."""
        start = jnp.pad(inverse_sigmoid(points), ((0, 0), (0, 0), (0, 2)))
        states, boxes = [tokens], [nn.sigmoid(predict.boxes(0, tokens) + start)]
        for i in range(self.decoder_layers):
            references = points
            if self.box_refine:
                references = jax.lax.stop_gradient(boxes[-1])
                start = inverse_sigmoid(references)
            ratios = jnp.tile(levels.ratios, (1, 1, references.shape[-1] // 2))
            layer = DecoderLayer(
                self.decoder_heads, self.points, self.hidden, self.dropout, self.sampling, self.dtype,
                name=f"decoder_layers_{i}",
            )  # fmt: skip
            scaled = references[:, :, None] * ratios[:, None]
            states.append(layer(states[-1], positions, scaled, maps, levels.masks, levels.extents, train))
            boxes.append(nn.sigmoid(predict.boxes(i + 1, states[-1]) + start))
        return states, boxes


class ViDTWithoutNeck(nn.Module):
    """ViDT with heads on the tokens of the backbone.

    Attributes are as in `OPTIONS`. The logits are those of a softmax over classes and no object.
    """

    embed_dim: int
    depths: Sequence[int]
    heads: Sequence[int]
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.0
    dim: int = 256
    position_dim: int = 256
    queries: int = 100
    num_classes: int = 91
    cross_stages: Sequence[int] = (3,)
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    token_label: ClassVar[bool] = False  # the maps that it would label are those of the neck

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        sizes: jax.Array | None = None,
        extents: jax.Array | None = None,
        train: bool = False,
    ) -> dict[str, jax.Array]:
        """Computes predictions of one level; arguments as in `ViDT`.

        Returns:
          logits: float32 `[1, batch, queries, num_classes + 1]`, the last class is no object.
          boxes: float32 `[1, batch, queries, 4]`, (center x, center y, width, height) relative to the image.
          body_tokens: `[batch, queries, dim]`.
        """
        extents = _extents(images, sizes, extents)
        _, tokens, _ = _backbone(self, 0, self.position_dim)(images, extents, train)
        x = Projection(self.dim, self.dtype, name="input_proj")(tokens)
        high = wide(self.dtype)
        logits = Perceptron(self.dim, self.num_classes + 1, dtype=high, name="class_embed")(x)
        boxes = nn.sigmoid(Perceptron(self.dim, 4, dtype=high, name="bbox_embed")(x))
        return {"logits": logits[None], "boxes": boxes[None], "body_tokens": x}


def _extents(images, sizes, extents):
    full = full_extents(images.shape)
    return Extents(full.sizes if sizes is None else sizes, full.extents if extents is None else extents)


def _backbone(model, merged_width, position_dim):
    """Returns the backbone of a model."""
    return Swin(
        embed_dim=model.embed_dim,
        depths=model.depths,
        heads=model.heads,
        window=model.window,
        mlp_ratio=model.mlp_ratio,
        drop_path=model.drop_path,
        tokens=model.queries,
        position_dim=position_dim,
        cross_stages=model.cross_stages,
        merged_width=merged_width,
        dtype=model.dtype,
        remat=model.remat,
        name="backbone",
    )


def build(options: ConfigDict, num_classes: int = 91) -> ViDT | ViDTWithoutNeck:
    """Returns the detector of an option section (see `OPTIONS`).

    Args:
      options: a section with the keys of `OPTIONS`.
      num_classes: number of classes. With neck each is a sigmoid output; default 91, the raw category ids of COCO.

    Raises:
      UserError: options do not fit together.
    """
    _check(options)
    shared_options = ("embed_dim", "window", "mlp_ratio", "drop_path", "dim", "queries", "remat")
    neck_options = ("decoder_heads", "decoder_layers", "points", "hidden", "dropout", "box_refine", "iou_aware")
    neck_options += ("cross_scale_fusion", "token_label", "sampling")
    fields = {name: options[name] for name in shared_options}
    fields |= {name: tuple(options[name]) for name in ("depths", "heads", "cross_stages")}
    fields |= {"num_classes": num_classes, "dtype": jnp.dtype(options.dtype)}
    if not options.neck:
        return ViDTWithoutNeck(position_dim=options.position_dim, **fields)
    return ViDT(**fields, **{name: options[name] for name in neck_options})


def _check(options):
    """Raises a UserError if options do not fit together."""
    width, dim = options.embed_dim, options.dim
    if any(width * 2**stage % heads for stage, heads in enumerate(options.heads)):
        raise UserError(
            f"ViDT embed_dim={width} times 1, 2, 4 and 8 cannot be split over heads={tuple(options.heads)}: choose "
            "multiples"
        )
    if width % 2:
        raise UserError(f"ViDT embed_dim={width} must be even: half of the channels encode rows, half columns")
    if dim % neck.GROUPS:
        raise UserError(f"ViDT dim={dim} is not a multiple of the {neck.GROUPS} groups of its norms: change it")
    if dim % options.decoder_heads:
        raise UserError(f"ViDT dim={dim} cannot be split over decoder_heads={options.decoder_heads}: choose a multiple")
    neck_options = [name for name in ("iou_aware", "cross_scale_fusion", "token_label") if options[name]]
    if neck_options and not options.neck:
        raise UserError(f"ViDT {neck_options[0]}=True needs neck=True: set one of them otherwise")
