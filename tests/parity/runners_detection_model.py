"""Runners of detection's networks.

The runners compute deformable attention, Swin with detection tokens, ViDT and its options, and weights.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}. Networks run in the plain form, whose extent is the
canvas. `VARIANTS` replays the same cases in larger canvases.
"""

import zlib
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cdl_jax.data.detection.segmentations import label_map
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.distill.detection import projected_tokens
from cdl_jax.methods.shared import detection_losses, detection_optimizer, detection_token_labels
from cdl_jax.models.detection import deformable, masks, neck, state_dicts, swin, vidt
from cdl_jax.models.detection.decoder import DecoderLayer
from cdl_jax.options import defaults
from tests.parity.compiled import compiled


def parameters(arrays, template, prefix="param/"):
    """Parameters of a case, in the tree of `template`."""
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    names = {state_dicts.torch_name(name) for name in flatten_dict(template, sep="/")}
    return state_dicts.from_torch({name: state[name] for name in names & set(state)}, template, "the case")


def shapes_of(module, *inputs, **arguments):
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **arguments))["params"]


def named_gradients(gradients, prefix="grad/"):
    return {f"{prefix}{name}": array for name, array in state_dicts.to_torch(jax.device_get(gradients)).items()}


def split_levels(flat, sizes):
    """Splits flat levels `[batch, positions, ...]` into `[batch, height, width, ...]`."""
    ends = np.cumsum([height * width for height, width in sizes])[:-1]
    parts = jnp.split(flat, ends, axis=1)
    return [part.reshape(part.shape[0], *size, *part.shape[2:]) for part, size in zip(parts, sizes, strict=True)]


def to_last(x):
    return jnp.moveaxis(x, 1, -1)


def to_first(x):
    return jnp.moveaxis(x, -1, 1)


def run_msda_core(config, arrays, implementation="gather"):
    @compiled
    def run(config, arrays):
        inputs = [jnp.asarray(arrays[f"in/{name}"]) for name in CORE_INPUTS]

        def value(flat, locations, weights):
            maps = split_levels(flat, config["spatial_shapes_h_w"])
            y = deformable.sample_maps(maps, locations, weights, implementation=implementation)
            return (arrays["in/cotangent"] * y).sum(), y

        (_, y), gradients = jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(*inputs)
        return {"out/output": y, **{f"grad/{name}": g for name, g in zip(CORE_INPUTS, gradients, strict=True)}}

    return run(config, arrays)


CORE_INPUTS = ("value", "sampling_locations", "attention_weights")


def run_msda_module(config, arrays, implementation="gather"):
    sizes = config["spatial_shapes_h_w"]
    module = deformable.DeformableAttention(config["heads"], config["points"], implementation)
    blocked = split_levels(jnp.asarray(arrays["in/padding_mask"], bool), sizes)

    def apply(params, query, src):
        maps = split_levels(src, sizes)
        inputs = (query, jnp.asarray(arrays["in/reference_points"]), maps, blocked)
        return module.apply({"params": params}, *inputs, mutable="intermediates")

    query, src = jnp.asarray(arrays["in/query"]), jnp.asarray(arrays["in/src"])
    inputs = (query, jnp.asarray(arrays["in/reference_points"]), split_levels(src, sizes), blocked)
    first = jax.jit(module.init)(jax.random.key(0), *inputs)["params"]
    params = parameters(arrays, first)

    @jax.jit
    @jax.value_and_grad
    def gradients(inputs):
        return (arrays["in/cotangent"] * apply(*inputs)[0]).sum()

    y, inner = jax.jit(apply)(params, query, src)
    _, (of_params, of_query, of_src) = gradients((params, query, src))
    return {
        "out/output": y,
        "out/sampling_locations": inner["intermediates"]["locations"][0],
        "out/attention_weights": inner["intermediates"]["weights"][0],
        "out/initial_sampling_offsets_bias": first["sampling_offsets"]["bias"],
        "grad/query": of_query,
        "grad/src": of_src,
        **named_gradients(of_params),
    }


def run_swin_stage(config, arrays, pad=(0, 0)):
    """One stage; `pad` rows and columns enlarge the canvas."""
    height, width = config["map"]
    batch, dim = config["batch"], config["dim"]
    stage = swin.Stage(
        config["heads"], config["window"], config["mlp_ratio"], (0.0,) * config["depth"], 2 * dim, name=None
    )
    extent = jnp.tile(jnp.array([[height, width]], jnp.int32), (batch, 1))
    canvas = height + pad[0], width + pad[1]
    inside = jnp.zeros((batch, *canvas), bool).at[:, :height, :width].set(True)
    mask = None
    if config["cross_attention"]:
        mask = jnp.ones((batch, *canvas), bool).at[:, :height, :width].set(arrays["in/padding_mask"] > 0)
    token_positions = jnp.asarray(arrays["in/det_pos"])

    def enlarge(flat):
        x = flat.reshape(batch, height, width, dim)
        return jnp.pad(x, ((0, 0), (0, pad[0]), (0, pad[1]), (0, 0)), constant_values=3.0)

    def cut(x, shape):
        return x[:, : shape[0], : shape[1]].reshape(batch, -1, x.shape[-1])

    def apply(params, patch, det):
        inputs = (enlarge(patch), det, token_positions, extent, inside, mask)
        return stage.apply(
            {"params": params}, *inputs, capture_intermediates=lambda module, _: isinstance(module, swin.Block)
        )

    def joined(outputs):
        (patches, tokens), (merged, merged_tokens) = outputs
        halves = -(-height // 2), -(-width // 2)
        out = jnp.concatenate([cut(patches, (height, width)), tokens], axis=1)
        return out, jnp.concatenate([cut(merged, halves), merged_tokens], axis=1)

    patch, det = jnp.asarray(arrays["in/patch"]), jnp.asarray(arrays["in/det"])
    inputs = (enlarge(patch), det, token_positions, extent, inside, mask)
    params = parameters(arrays, shapes_of(stage, *inputs))

    @jax.jit
    @jax.grad
    def gradients(inputs):
        out, merged = joined(apply(*inputs)[0])
        return (arrays["in/cotangent_out"] * out).sum() + (arrays["in/cotangent_merged"] * merged).sum()

    outputs, inner = jax.jit(apply)(params, patch, det)
    out, merged = joined(outputs)
    of_params, of_patch, of_det = gradients((params, patch, det))
    window = config["window"]
    padded = -(-height // window) * window, -(-width // window) * window
    ours = {
        "out/stage_out": out,
        "out/merged": merged,
        "out/shift_mask": swin.shift_mask(swin.shift_regions(extent, padded, window))[0],
        "grad/patch": of_patch,
        "grad/det": of_det,
        **named_gradients(of_params),
    }
    if mask is not None:
        ours["out/patch_pos"] = masks.sine_positions(mask, dim)[:, :height, :width]
    for i in range(config["depth"]):
        patches, tokens = inner["intermediates"][f"blocks_{i}"]["__call__"][0]
        ours |= {f"out/block{i}_patch": cut(patches, (height, width)), f"out/block{i}_det": tokens}
    return ours


def run_decoder_layer(config, arrays):
    """A layer whose dropout uses the masks of the case."""
    sizes = config["spatial_shapes_h_w"]
    layer = DecoderLayer(config["heads"], config["points"], config["ffn"], config["dropout"])
    names = {
        "dropout": "attention",
        "dropout2": "self_attention_out",
        "dropout1": "cross_attention_out",
        "dropout3": "ffn_hidden",
        "dropout4": "ffn_out",
    }
    blocked = split_levels(jnp.asarray(arrays["in/padding_mask"], bool), sizes)

    def replay_dropout(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            keep = arrays[f"in/keep_{names[context.module.name]}"]
            return args[0] * keep / (1 - context.module.rate)
        return call(*args, **kwargs)

    def apply(params, tgt, src):
        inputs = (tgt, arrays["in/query_pos"], jnp.asarray(arrays["in/reference"]), split_levels(src, sizes), blocked)
        with nn.intercept_methods(replay_dropout):
            return layer.apply({"params": params}, *inputs, train=True)

    tgt, src = jnp.asarray(arrays["in/tgt"]), jnp.asarray(arrays["in/src"])
    inputs = (tgt, arrays["in/query_pos"], jnp.asarray(arrays["in/reference"]), split_levels(src, sizes), blocked)
    params = parameters(arrays, shapes_of(layer, *inputs))

    @jax.jit
    @jax.grad
    def gradients(inputs):
        return (arrays["in/cotangent"] * apply(*inputs)).sum()

    of_params, of_tgt, of_src = gradients((params, tgt, src))
    y = jax.jit(apply)(params, tgt, src)
    return {"out/y": y, "grad/tgt": of_tgt, "grad/src": of_src, **named_gradients(of_params)}


@compiled
def run_masks(config, arrays):
    ours = {}
    for number, of_images in enumerate(config["batches"]):
        sizes, largest = arrays[f"in/sizes_{number}"], np.max(of_images, axis=0)
        padded = sizes.max(axis=0)
        extents = masks.Extents(sizes, jnp.broadcast_to(padded, sizes.shape))

        def shape_of(stride, largest=largest):
            return tuple(int(-(-side // stride)) for side in largest)

        ours[f"out/padded_size_{number}"] = padded
        for level, stride in enumerate(masks.STRIDES[1:]):
            ours[f"out/mask_{number}_level{level}"] = extents.mask(stride, shape_of(stride))
        ours[f"out/cross_mask_{number}"] = cross = extents.cross_mask(32, shape_of(32), 8)
        ours[f"out/cross_pos_{number}"] = masks.sine_positions(cross, config["position_dim"])
        ratios = [extents.valid_ratios(stride, shape_of(stride)) for stride in masks.STRIDES[1:]]
        ours[f"out/valid_ratios_{number}"] = jnp.stack(ratios, axis=1)
    return ours


def run_fusion(config, arrays, pad=(0, 0)):
    fusion = neck.CrossScaleFusion(config["fuse_dim"])
    levels = range(config["levels"])
    maps, inside, extents = [], [], []
    for level in levels:
        x = to_last(jnp.asarray(arrays[f"in/level{level}"]))
        batch, height, width = x.shape[:3]
        maps.append(jnp.pad(x, ((0, 0), (0, pad[0]), (0, pad[1]), (0, 0)), constant_values=2.0))
        inside.append(jnp.zeros(maps[-1].shape[:3], bool).at[:, :height, :width].set(True))
        extents.append(jnp.tile(jnp.array([[height, width]], jnp.int32), (batch, 1)))
    arrays = {name.replace("param/multi_scaler.", "param/"): array for name, array in arrays.items()}
    params = parameters(arrays, shapes_of(fusion, maps, inside, extents))
    outputs = jax.jit(fusion.apply)({"params": params}, maps, inside, extents)
    sides = [config["shapes"][level] for level in reversed(levels)]
    return {
        f"out/output{i}": to_first(x[:, :height, :width])
        for i, (x, (height, width)) in enumerate(zip(outputs, sides, strict=True))
    }


def options_of(config):
    """Options of a detector from the config of a case."""
    sizes = vidt.SIZES[f"vidt_{config['backbone']}"] if "backbone" in config else {}
    theirs = {
        "d_model": "dim",
        "decoder_layers": "decoder_layers",
        "decoder_heads": "decoder_heads",
        "ffn": "hidden",
        "det_tokens": "queries",
        "pos_dim": "position_dim",
    }
    same = ("embed_dim", "depths", "heads", "window", "mlp_ratio", "points", "cross_stages", "box_refine")
    options = defaults(vidt.OPTIONS, **{**sizes, "drop_path": 0.0, "dropout": 0.0})
    options |= {name: config[name] for name in same if name in config}
    options |= {ours: config[name] for name, ours in theirs.items() if name in config}
    return ConfigDict(options)


class Canvas:
    """A case's images in a canvas, with sizes and extents; outputs cut to the extent."""

    def __init__(self, images, sizes, canvas=None):
        height, width = images.shape[2:]
        canvas = canvas or (height, width)
        self.images = jnp.pad(to_last(images), ((0, 0), (0, canvas[0] - height), (0, canvas[1] - width), (0, 0)))
        self.sizes = jnp.array(sizes, jnp.int32)
        self.extents = jnp.tile(jnp.array([[height, width]], jnp.int32), (len(sizes), 1))
        self.inputs = (self.images, self.sizes, self.extents)

    def cut(self, x, stride):
        height, width = (-(-int(side) // stride) for side in self.extents[0])
        return x[:, :height, :width]


def canvas_of(images, sizes, pad):
    """Returns the plain form without `pad`, else a canvas larger by at least `pad`.

    The sides of the larger canvas are multiples of 64.
    """
    sides = images.shape[2:]
    canvas = tuple(-(-(side + pad) // 64) * 64 for side in sides) if pad else None
    return Canvas(images, sizes, canvas)


def batch_of_targets(arrays):
    count = sum(name.startswith("in/target") and name.endswith("_labels") for name in arrays)
    labels = [arrays[f"in/target{i}_labels"] for i in range(count)]
    length = max(1, *(len(ids) for ids in labels))
    boxes = np.tile(np.float32([0.5, 0.5, 1, 1]), (count, length, 1))
    padded, valid = np.zeros((count, length), np.int32), np.zeros((count, length), bool)
    for i, ids in enumerate(labels):
        boxes[i, : len(ids)], padded[i, : len(ids)] = arrays[f"in/target{i}_boxes"], ids
        valid[i, : len(ids)] = True
    return {"boxes": boxes, "labels": padded, "valid": valid}


def loss_options(**changes):
    # A program with SciPy's callback is in no cache of compiled programs. `detect_matcher_losses` replays that solver.
    return ConfigDict(defaults(detection_losses.OPTIONS, solver="device", **changes))


def run_vidt(config, arrays, pad=0, sampling="auto"):
    options = options_of(config)
    options.sampling = sampling
    model = vidt.build(options, config["classes"])
    canvas = canvas_of(jnp.asarray(arrays["in/images"]), config["image_sizes"], pad)
    params, targets = parameters(arrays, shapes_of(model, *canvas.inputs)), batch_of_targets(arrays)
    weights = config["loss_weights"]
    set_options = loss_options(
        class_weight=float(weights["ce"]), box_weight=float(weights["bbox"]), giou_weight=float(weights["giou"])
    )
    trained, distil = {"detector": params}, None
    if config["distillation"]:
        trained["projectors"], distil = distillation(config, arrays, canvas)

    @jax.jit
    def compute(trained):
        def loss(trained):
            out = model.apply({"params": trained["detector"]}, *canvas.inputs)
            total, terms = detection_losses.detection_loss(set_options, out, targets)
            if distil is not None:
                weighted, of_distil = distil(trained["projectors"], out)
                total, terms = total + weighted, {**terms, "loss_distil": of_distil["loss_distil"]}
            return total, (out, terms)

        return jax.value_and_grad(loss, has_aux=True)(trained)

    (total, (out, terms)), gradients = jax.device_get(compute(trained))
    levels, batch, queries = out["boxes"].shape[:3]
    points = np.broadcast_to(out["points"], (batch, queries, 2))
    ours = {
        "out/logits_all_layers": out["logits"],
        "out/boxes_all_layers": out["boxes"],
        "out/decoder_hs": out["neck_tokens"],
        "out/initial_reference": points,
        "out/references": out["boxes"] if config["box_refine"] else np.stack([points] * levels),
        "out/det_tokens_body": out["backbone_tokens"],
        "out/det_tokens_projected": out["body_tokens"],
        "out/loss_total": total,
        **{f"out/{name}": value for name, value in terms.items()},
        **named_gradients({**gradients["detector"], **gradients.get("projectors", {})}),
    }
    for i, stride in enumerate(masks.STRIDES[1:]):
        ours[f"out/backbone_level{i}"] = to_first(canvas.cut(out["backbone_maps"][i], stride))
        ours[f"out/src_level{i}"] = to_first(canvas.cut(out["patch_maps"][i], stride))
        ours[f"out/mask_level{i}"] = canvas.cut(out["masks"][i], stride)
    return ours


def distillation(config, arrays, canvas):
    """Returns the projectors' parameters and the loss.

    The loss is a function of these parameters and of the detector's outputs.
    """
    dim, maps = config["d_model"], []
    for level, stride in enumerate(masks.STRIDES[1:]):
        x = to_last(jnp.asarray(arrays[f"in/teacher_patch{level}"]))
        rows, columns = (-(-side // stride) for side in canvas.images.shape[1:3])
        maps.append(jnp.pad(x, ((0, 0), (0, rows - x.shape[1]), (0, columns - x.shape[2]), (0, 0))))
    teacher = {
        "patch_maps": tuple(maps),
        "body_tokens": arrays["in/teacher_body_det"],
        "neck_tokens": arrays["in/teacher_neck_det"],
    }
    spec = NetworkSpec(dim, 0, config["det_tokens"], config["classes"], 1, None, None)
    options = ConfigDict(defaults(projected_tokens.OPTIONS, weight=float(config["loss_weights"]["distil"])))
    scheme = projected_tokens.build(options, spec, spec)
    first = jax.eval_shape(scheme.init, jax.random.key(0))
    state = parameters(arrays, first["state"])

    def loss(params, out):
        student = {**out, "inside": tuple(inside[None] for inside in out["inside"])}  # one group
        return scheme.loss({"params": params, "state": state}, student, teacher, None, None)

    return parameters(arrays, first["params"]), loss


def numbers(name, shape):
    """Returns numbers in [-1, 1) from an array's name, see notes of kind `vidt_full`."""
    z = np.uint64(zlib.crc32(name.encode()) << 32) + np.arange(np.prod(shape), dtype=np.uint64)
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z = z ^ z >> np.uint64(31)
    return ((z >> np.uint64(11)) * 2.0**-52 - 1).reshape(shape)


def drawn_parameters(arrays):
    """The parameters of a case whose numbers follow from their names, under `param/`."""
    drawn = {}
    for name, shape, offset, scale in zip(
        arrays["in/names"], arrays["in/shapes"], arrays["in/offset"], arrays["in/scale"], strict=True
    ):
        shape = tuple(shape[shape > 0])
        drawn[f"param/{name}"] = np.float32(offset + scale * numbers(str(name), shape))
    return drawn


def run_full(config, arrays, pad=0, sampling="auto"):
    options = options_of(config)
    options.sampling = sampling
    model = vidt.build(options, 91)
    height, width = config["padded"]
    images = np.zeros((len(config["image_sizes"]), 3, height, width), np.float32)
    for i, size in enumerate(config["image_sizes"]):
        images[i, :, : size[0], : size[1]] = 2 * numbers(f"image{i}", (3, *size))
    canvas = canvas_of(jnp.asarray(images), config["image_sizes"], pad)
    params = parameters(drawn_parameters(arrays), shapes_of(model, *canvas.inputs))
    out = jax.device_get(jax.jit(model.apply)({"params": params}, *canvas.inputs))
    ours = {
        "out/logits_level6": out["logits"][-1],
        "out/logits_mean": out["logits"].mean(axis=-1),
        "out/boxes": out["boxes"],
        "out/det_body": out["backbone_tokens"],
    }
    for i, stride in enumerate(masks.STRIDES[1:]):
        ours[f"out/patch_mean_{i}"] = canvas.cut(out["backbone_maps"][i], stride).mean(axis=(1, 2))
    return ours


def run_options(config, arrays, pad=0):
    """Fusion, IoU heads and token labels, with all losses."""
    options = options_of(config)
    options.update(iou_aware=True, cross_scale_fusion=True, token_label=True)
    model = vidt.build(options, config["classes"])
    canvas = canvas_of(jnp.asarray(arrays["in/images"]), config["image_sizes"], pad)
    params = parameters(drawn_parameters(arrays), shapes_of(model, *canvas.inputs))
    targets, shares = batch_of_targets(arrays), token_shares(config, arrays, canvas)
    weights = config["weights"]
    set_options = loss_options(
        iou_target_gradient=True,
        class_weight=float(weights["loss_ce"]),
        box_weight=float(weights["loss_bbox"]),
        giou_weight=float(weights["loss_giou"]),
        iou_weight=float(weights["loss_iouaware"]),
    )
    of_tokens = {name: float(weights[f"loss_token_{name.split('_')[0]}"]) for name in ("focal_weight", "dice_weight")}
    token_options = ConfigDict(defaults(detection_token_labels.OPTIONS, **of_tokens))
    normalizer = detection_losses.object_normalizer(targets["valid"])

    @jax.jit
    def compute(params):
        def loss(params):
            out = model.apply({"params": params}, *canvas.inputs)
            total, terms = detection_losses.detection_loss(set_options, out, targets)
            of_tokens, token_terms = detection_token_labels.token_losses(
                token_options, out["token_logits"], shares, out["inside"], normalizer
            )
            return total + of_tokens, (out, terms | token_terms)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, (out, terms)), gradients = jax.device_get(compute(params))
    ours = {f"out/{name}": value for name, value in terms.items()}
    ours |= {
        "out/loss_total": total,
        "out/logits": out["logits"][-1],
        "out/boxes": out["boxes"][-1],
        "out/ious": out["iou_logits"][-1][..., None],
        **named_gradients(gradients),
    }
    for i, stride in enumerate(reversed(masks.STRIDES[1:])):
        ours[f"out/token_logits_{i}"] = canvas.cut(out["token_logits"][i], stride)
    return ours


def token_shares(config, arrays, canvas):
    """The targets of the token labels, from the masks of the objects, coarse to fine."""
    labels = np.zeros(canvas.images.shape[:3], np.uint8)
    for i in range(len(labels)):
        of_objects = arrays[f"in/target{i}_masks"].astype(bool)
        height, width = of_objects.shape[1:]
        labels[i, :height, :width] = label_map(of_objects, arrays[f"in/target{i}_labels"], (height, width))
    extents = masks.Extents(canvas.sizes, canvas.extents)
    shapes = {stride: [-(-side // stride) for side in canvas.images.shape[1:3]] for stride in masks.STRIDES[1:]}
    return [
        detection_token_labels.class_shares(
            labels, config["classes"], canvas.extents, extents.of_map(stride), tuple(shape)
        )
        for stride, shape in reversed(shapes.items())
    ]


def run_without_neck(config, arrays, pad=0):
    options = options_of(config)
    options.neck = False
    model = vidt.build(options, config["classes"])
    canvas = canvas_of(jnp.asarray(arrays["in/images"]), config["image_sizes"], pad)
    params, targets = parameters(arrays, shapes_of(model, *canvas.inputs)), batch_of_targets(arrays)
    weights, costs = config["weights"], config["cost_weights"]
    options = loss_options(
        class_loss="softmax",
        background_weight=config["background_weight"],
        class_weight=float(weights["loss_ce"]),
        box_weight=float(weights["loss_bbox"]),
        giou_weight=float(weights["loss_giou"]),
        class_cost=float(costs["class"]),
        box_cost=float(costs["box_l1"]),
        giou_cost=float(costs["giou"]),
    )

    @jax.jit
    def compute(params):
        def loss(params):
            out = model.apply({"params": params}, *canvas.inputs)
            total, terms = detection_losses.detection_loss(options, out, targets)
            return total, (out, terms, detection_losses.match_queries(options, out, targets))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (total, (out, terms, matches)), gradients = jax.device_get(compute(params))
    ours = {
        "out/logits": out["logits"][-1],
        "out/boxes": out["boxes"][-1],
        "out/loss_total": total,
        **{f"out/{name}": value for name, value in terms.items()},
        **named_gradients(gradients),
    }
    for i, size in enumerate(config["original_sizes"]):
        count = targets["valid"][i].sum()
        order = np.argsort(matches[-1, i, :count])
        ours[f"out/match_{i}"] = np.stack([matches[-1, i, :count][order], order])
        scores = np.asarray(nn.softmax(out["logits"][-1, i]))[:, :-1]
        center, sides = np.split(out["boxes"][-1, i], 2, axis=-1)
        corners = np.concatenate([center - sides / 2, center + sides / 2], axis=-1)
        ours |= {
            f"out/scores_{i}": scores.max(axis=-1),
            f"out/labels_{i}": scores.argmax(axis=-1),
            f"out/boxes_xyxy_{i}": corners * np.tile(size[::-1], 2),
        }
    return ours


def run_pretrained_keys(config, arrays):
    """Marks the names of a classifier's file that the backbone takes over.

    The other names of the backbone, whose values stay as they are, are in `out/fresh`.
    """
    model = vidt.build(options_of(config), 91)
    params = shapes_of(model, jnp.zeros((1, 64, 64, 3)))
    stored = [str(name) for name in arrays["in/names"]]
    shapes = [tuple(shape[shape > 0]) for shape in arrays["in/shapes"]]
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in zip(stored, shapes, strict=True)}
    taken = state_dicts.backbone_tensors(state)
    own = {
        state_dicts.torch_name(path): leaf
        for path, leaf in flatten_dict({"backbone": params["backbone"]}, sep="/").items()
    }
    own = [name.removeprefix("backbone.") for name in own]
    unused = [n.removeprefix("backbone.") for n in state_dicts.unused_shapes(params) if n.startswith("backbone.")]
    fresh = [name for name in own + unused if name not in taken]
    return {"out/taken": [name in taken for name in stored], "out/fresh": in_order(fresh, arrays["out/fresh"])}


def in_order(names, wanted):
    """The names in the order of `wanted`, others behind them."""
    wanted = [str(name) for name in wanted]
    return np.array(sorted(names, key=lambda name: wanted.index(name) if name in wanted else len(wanted)))


def run_parameters(config, arrays):
    """Returns names, shapes and initial values of all parameters with the projectors.

    Random values are compared by their rules.

    `init_statistics` of random values are those of the case once ours have passed `follows`.
    """
    model = vidt.build(options_of(config), config["classes"])
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"])
    projectors = projected_tokens.TokenProjectors(model.dim)
    terms = [*(f"patch_{level + 1}" for level in range(4)), "body", "neck"]
    rows = {term: jnp.zeros((1, model.dim)) for term in terms}
    of_projectors = jax.device_get(projectors.init(jax.random.key(1), rows)["params"])
    own = state_dicts.to_torch(params) | state_dicts.to_torch(of_projectors)
    unused = state_dicts.unused_shapes(params)
    counts = {
        "detector_parameters": count(state_dicts.to_torch(params).values(), unused.values()),
        "with_projectors": count(own.values(), unused.values()),
        "receiving_gradient": count(own.values()),
    }
    assert counts == {name: config[name] for name in counts}

    names = [str(name) for name in arrays["out/names"]]
    rules = dict(zip(names, arrays["out/init_rule"], strict=True))
    statistics = dict(zip(names, arrays["out/init_statistics"], strict=True))
    broken = [name for name, array in own.items() if not follows(rules[name], name, array, own, statistics[name])]
    assert not broken, {name: rules[name] for name in broken}
    everything = {**{name: array.shape for name, array in own.items()}, **unused}
    ordered = in_order(everything, names)
    return {
        "out/names": ordered,
        "out/shapes": [(*everything[name], 0, 0, 0)[:4] for name in ordered],
        "out/receives_gradient": [name in own for name in ordered],
        "out/init_rule": arrays["out/init_rule"],
        "out/init_statistics": arrays["out/init_statistics"],
        **optimizer_groups(config, {**params, **of_projectors}, unused, ordered),
    }


def optimizer_groups(config, params, unused, ordered):
    """Decay and learning rate of each parameter."""
    decays = {
        state_dicts.torch_name("/".join(path)): detection_optimizer.has_decay(path, leaf.ndim)
        for path, leaf in flatten_dict(params).items()
    }
    decays |= {name: detection_optimizer.has_decay(tuple(name.split(".")), len(unused[name])) for name in unused}
    sizes = {name: int(np.prod(shape)) for name, shape in unused.items()}
    sizes |= {name: array.size for name, array in state_dicts.to_torch(params).items()}
    assert sum(sizes[name] for name in ordered if decays[name]) == config["decayed"]
    groups = []
    for in_backbone, decayed in ((False, True), (True, False), (True, True)):
        group = [n for n in ordered if (n.startswith("backbone."), decays[n]) == (in_backbone, decayed)]
        groups.append([len(group), sum(sizes[name] for name in group)])
    assert groups == [group[:2] for group in config["groups"]]
    rate = defaults(detection_optimizer.OPTIONS)["learning_rate"]
    return {"out/decayed": [decays[name] for name in ordered], "out/learning_rate": [rate] * len(ordered)}


def count(arrays, shapes=()):
    return sum(array.size for array in arrays) + sum(int(np.prod(shape)) for shape in shapes)


def follows(rule, name, array, state, statistics):
    """Returns whether initial values follow a rule.

    A rule has exact values, or bound, mean and deviation of a distribution.
    """
    match rule:
        case "zeros" | "ones":
            return (array == (rule == "ones")).all()
        case "constant_-log(99)":
            return np.allclose(array, -np.log(99))
        case "zeros_zeros_-2_-2":
            return array.tolist() == [0, 0, -2, -2]
        case "minus_identity":
            return np.array_equal(array, -np.eye(len(array)))
        case "offset_pattern":
            found = array.min(), array.max(), array.mean(), array.std()
            return np.allclose(found, statistics, rtol=1e-4, atol=1e-6)
        case "normal_0.02":
            return fits_moments(array, 0.02, 3)
        case "linear_default" | "xavier_uniform":
            kernel = state[name.removesuffix("bias") + "weight" if name.endswith(".bias") else name]
            inputs = int(np.prod(kernel.shape[1:]))
            bound = inputs**-0.5 if rule == "linear_default" else (6 / (inputs + len(kernel))) ** 0.5
            return np.abs(array).max() <= bound and fits_moments(array, bound / 3**0.5, 1.8)
    raise AssertionError(f"unknown rule {rule}")


def fits_moments(array, deviation, kurtosis):
    """Whether mean and deviation lie within 5 standard errors of 0 and `deviation`."""
    of_mean, of_deviation = deviation / array.size**0.5, deviation * ((kurtosis - 1) / 4 / array.size) ** 0.5
    return abs(array.mean()) < 5 * of_mean and abs(array.std() - deviation) < 5 * of_deviation


RUNNERS = {
    "msda_core": run_msda_core,
    "msda_module": run_msda_module,
    "swin_ram_stage": run_swin_stage,
    "decoder_layer_dropout": run_decoder_layer,
    "detect_masks": run_masks,
    "detect_cross_scale_fusion": run_fusion,
    "vidt_tiny": run_vidt,
    "vidt_full": run_full,
    "vidt_tiny_options": run_options,
    "vidt_wo_neck": run_without_neck,
    "swin_pretrained_keys": run_pretrained_keys,
    "detect_parameters": run_parameters,
}

# The same cases by other programs: in larger canvases, and by the other form of deformable attention.
VARIANTS = {
    "msda_core": [partial(run_msda_core, implementation="dense")],
    "msda_module": [partial(run_msda_module, implementation="dense")],
    "swin_ram_stage": [partial(run_swin_stage, pad=(3, 9))],
    "detect_cross_scale_fusion": [partial(run_fusion, pad=(2, 5))],
    "vidt_tiny": [partial(run_vidt, pad=1, sampling="gather")],
    "vidt_full": [partial(run_full, pad=1, sampling="dense")],
    "vidt_tiny_options": [partial(run_options, pad=1)],
    "vidt_wo_neck": [partial(run_without_neck, pad=1)],
}
