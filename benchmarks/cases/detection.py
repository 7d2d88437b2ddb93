"""ViDT: a step against PyTorch, the cost of the matching, and both samplings.

    python -m benchmarks.run detection [--parts step solver sampling] [--rounds 7]

The small detector is that of configs/detection_glyph.py:size=large. A batch has 16 glyph scenes on a canvas of
128 x 128.
step: against eager PyTorch, and its roofline by the operations and bytes of the products in our step.
solver: the step and the matching alone with SciPy on the host, and with optax on the device.
sampling: deformable attention, forward and backward, by gather and by matrix products, for several sizes of maps.
"""

import tempfile
from functools import partial
from pathlib import Path

from benchmarks import comparison, timing, torch_peers

PARTS = ("step", "solver", "sampling")
SIZES = ((128, 128), (256, 256), (384, 384), (800, 1056))  # of images whose maps are sampled
IMAGES, QUERIES, HEADS, POINTS, CHANNELS = 2, 100, 8, 4, 32  # of ViDT
_PEER = "frozen"  # eager, without a read of the host in each step


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round")
    parser.add_argument("--batch", type=int, default=16)


def measure(options) -> dict:
    """Prints the tables; returns their figures.

    Raises:
        UserError: losses, assignments or samples differ.
    """
    from benchmarks.training_state import TrainingState

    comparison.use_float32()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        if {"step", "solver"} & {*options.parts}:
            ours = TrainingState(scenes_config(Path(folder) / "scenes", options.batch))
            for part in [part for part in options.parts if part != "sampling"]:
                found[part] = {"step": step, "solver": solver}[part](ours, options)
                print()
    if "sampling" in options.parts:
        found["sampling"] = sampling(options)
    return found


def scenes_config(folder: Path, batch: int):
    """Writes glyph scenes; returns the config of a run on them.

    Images of its batches have no random scale or crop.
    """
    from cdl_jax.data.tools import make_glyph_scenes
    from configs import detection_glyph

    make_glyph_scenes.main(["--out", str(folder), "--num-train", str(8 * batch), "--num-val", "16"])
    config = detection_glyph.get_config("size=large")
    config.data.path = str(folder)
    config.augment.update({"canvases": ((128, 128),), "group_size": batch})
    config.train.batch_size = config.eval.batch_size = batch
    config.devices = 1
    return config


def step(ours, options) -> dict:
    """Compares a step of a `TrainingState` with eager PyTorch."""
    torch = torch_peers.start()
    from benchmarks.torch_peers.steps import Steps
    from benchmarks.torch_peers.torch_variants import VARIANTS
    from benchmarks.torch_peers.vidt import ViDT

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prepared = ours.batches(0, max(options.steps, comparison.CHECKED))
    classes = max(ours.experiment.stream.class_order) + 1
    peer = Steps(ViDT(ours.experiment.config, ours.variables(), classes), VARIANTS[_PEER], device)
    peer.batches = [torch_batch(ours.steps.train_loader, item, device) for item, _ in prepared]
    work = ours.steps.traced_work(0)
    found = comparison.timed("ViDT, small", ours, prepared, {"eager": peer}, options, work)
    roof = found["roof"]
    print(
        f"{roof['gflop']:.1f} GFLOP and {roof['mbyte']:.0f} MB in the products of our step, at least "
        f"{roof['least_ms']:.0f} ms by {roof['bound']}: {100 * roof['of_roof']:.0f} % of the roofline"
    )
    return found


def torch_batch(loader, item, device):
    """Returns a batch of the loader as tensors on the device.

    Returns:
        (images `[batch, 3, height, width]`, padding masks `[batch, height, width]`, labels by image, boxes by image).
        Height and width are those of the largest extent.
    """
    import numpy as np
    import torch

    batch = {name: np.asarray(array) for name, array in loader.read(loader.data, item).items()}
    height, width = batch["extents"].max(axis=0)
    images = torch.tensor(batch["images"][:, :height, :width].transpose(0, 3, 1, 2)).contiguous()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    mask = torch.stack([(rows >= int(h)) | (columns >= int(w)) for h, w in batch["sizes"]])
    targets = [
        [torch.tensor(own[valid]).to(device) for own, valid in zip(batch[name], batch["valid"], strict=True)]
        for name in ("labels", "boxes")
    ]
    return images.to(device), mask.to(device), *targets


def solver(host, options) -> dict:
    """Compares the matching on the host with that on the device, in a step and alone.

    Args:
        host: `TrainingState` whose matching is on the host.
        options: parsed command line.
    """
    import copy

    import jax
    import numpy as np

    from benchmarks.training_state import TrainingState
    from cdl_jax.methods.shared import detection_losses, detection_matching, detection_teachers

    config, names = copy.deepcopy(host.experiment.config), ("host", "device")
    config.vidt.solver = "device"
    states = {"host": host, "device": TrainingState(config, host.experiment.stream)}
    states["device"].state = _copied(host.state)
    prepared = host.batches(0, options.steps)
    batch = host.steps.train_loader.read(host.steps.train_loader.data, prepared[0][0])
    method, student = host.experiment.method, host.variables()["student"]

    @jax.jit
    def costs_of(student, batch):
        out = detection_teachers.apply(method.student, student, batch)
        costs = detection_losses.detection_matching.focal_class_costs(out["logits"])
        return detection_matching.pair_costs(method.options, costs, out["boxes"], batch["boxes"], batch["labels"])

    costs, valid = jax.block_until_ready((costs_of(student, batch), batch["valid"]))
    alone = {name: jax.jit(partial(detection_matching.match, solver=name)) for name in names}
    same = np.array_equal(*(match(costs, valid) for match in alone.values()))
    timing.check_equal("the assignment", {"device": float(not same)}, {"device": 0.0})
    each = {name: lambda one=one: 1e3 * one.seconds(0, prepared) / options.steps for name, one in states.items()}
    for one in each.values():
        one()
    losses = {name: float(one.loss(0)) for name, one in states.items()}
    timing.check_equal("the loss", timing.loss_differences(losses, "host"), dict.fromkeys(names, 1e-4))
    for name, match in alone.items():
        each[f"{name} alone"] = lambda match=match: 1e3 * _seconds(lambda: match(costs, valid), 10)
    ms = timing.compare(timing.alternate(each, options.rounds), "host")
    rows = [
        (name, _range(ms[name]), f"{ms[name]['ratio']:.2f}", _range(ms[f"{name} alone"], 2),
         f"{100 * ms[f'{name} alone']['median'] / ms[name]['median']:.1f} %")
        for name in names
    ]  # fmt: skip
    problems = f"{costs.shape[0] * costs.shape[1]} of {costs.shape[2]} queries x {costs.shape[3]} objects"
    print(f"Matching problems of a step: {problems}.\n")
    print(timing.markdown(("solver", "a step, ms (quartiles)", "ratio", "the matching alone, ms", "of the step"), rows))
    return {"problems": list(costs.shape), "ms": ms}


def sampling(options) -> dict:
    """Compares both implementations of deformable sampling at several sizes of maps."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cdl_jax.models.detection import deformable

    rng, found, rows = np.random.default_rng(0), [], []
    for height, width in SIZES:
        shapes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64)]
        maps = [jnp.float32(rng.normal(size=(IMAGES, *shape, HEADS, CHANNELS))) for shape in shapes]
        places = (IMAGES, QUERIES, HEADS, len(shapes), POINTS)
        locations, weights = jnp.float32(rng.uniform(size=(*places, 2))), jnp.float32(rng.uniform(size=places))
        ways, results = {}, {}
        for name in ("gather", "dense"):

            def loss(maps, locations, weights, name=name):
                sampled = deformable.sample_maps(maps, locations, weights, implementation=name)
                return (sampled**2).mean()

            gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
            results[name] = float(gradient(maps, locations, weights)[0])
            repeats = 3 if height * width < 300_000 else 1
            ways[name] = lambda f=gradient, a=(maps, locations, weights), n=repeats: 1e3 * _seconds(lambda: f(*a), n)
        timing.check_equal("the samples", timing.loss_differences(results, "gather"), {"gather": 0.0, "dense": 1e-4})
        ms = timing.compare(timing.alternate(ways, options.rounds), "gather")
        positions = sum(h * w for h, w in shapes)
        chosen = deformable.choose_implementation("auto", positions)
        found.append({"image": [height, width], "positions": positions, "auto": chosen, "ms": ms})
        cells = (_range(ms["gather"]), _range(ms["dense"]), f"{ms['dense']['ratio']:.2f}", chosen)
        rows.append((f"{height} x {width}", f"{positions:,}", *cells))
    print(timing.markdown(("images", "positions", "gather, ms (quartiles)", "dense, ms", "ratio", "auto"), rows))
    return {"maps": found}


def _copied(state):
    """Returns a state with buffers of its own, as a step reuses those of its argument."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(jnp.copy, state)


def _seconds(call, repeats):
    """Returns the mean seconds of a call."""
    import jax

    start = timing.now()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (timing.now() - start) / repeats


def _range(summary, digits=1):
    return f"{summary['median']:.{digits}f} ({summary['q1']:.{digits}f}-{summary['q3']:.{digits}f})"
