"""Compares a step of a method with one phase to PyTorch.

The cases `okddip`, `dkt`, `vkd` and `detection` use this module.
"""

import numpy as np

from benchmarks import roofline, timing, torch_peers
from benchmarks.torch_peers.torch_variants import VARIANTS

OURS, CHECKED = "ours", 3
HEAD = ("a step of", "ours, ms (quartiles)", "of peak", "against", "ms (quartiles)", "ratio", "max loss diff")


def arguments(parser) -> None:
    """Adds the options that these cases share."""
    parser.add_argument("--manners", nargs="+", choices=("authors", "tuned"), default=("authors", "tuned"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round")


def measure(what: str, config, make, options, per_learner: bool = False) -> dict:
    """Prints the table of one comparison; returns its figures.

    Args:
        what: name of the network or method in the table.
        config: config of the JAX run, without augmentation.
        make: `(config, variables, classes, variant) -> module` of the PyTorch side, see `torch_peers.steps.Steps`.
        options: parsed command line, see `arguments`.
        per_learner: whether the JAX loss is the mean, and the PyTorch loss the sum, over learners. Default: False.

    Raises:
        UserError: the losses differ.
    """
    torch = torch_peers.start()
    from benchmarks.torch_peers.steps import Steps
    from benchmarks.training_state import TrainingState

    use_float32()
    ours, device = TrainingState(config), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    variables, stream = ours.variables(), ours.experiment.stream
    prepared = ours.batches(0, max(options.steps, CHECKED))
    batches = [_arrays(stream.train, np.asarray(item["rows"])) for item, _ in prepared]
    peers = {}
    for name in options.manners:
        peers[name] = Steps(make(config, variables, stream.num_classes, VARIANTS[name]), VARIANTS[name], device)
        peers[name].prepare(batches)
    work = roofline.Work(flops=next(iter(peers.values())).flops()) if peers else roofline.Work()
    for name in options.manners:  # counting has moved running statistics
        peers[name] = Steps(make(config, variables, stream.num_classes, VARIANTS[name]), VARIANTS[name], device)
        peers[name].prepare(batches)
    return timed(what, ours, prepared, peers, options, work, len(batches[0][1]) if per_learner else 1)


def use_float32() -> bool:
    """Computes products on a CPU in full float32.

    Returns:
        Whether jax computes on an accelerator.
    """
    import jax

    accelerated = jax.default_backend() != "cpu"
    if not accelerated:
        jax.config.update("jax_default_matmul_precision", "highest")
    return accelerated


def timed(what: str, ours, prepared, peers, options, work: roofline.Work, share: int = 1) -> dict:
    """Times both sides in turns; prints the table and returns its figures.

    Timing starts once the losses of both sides agree.

    Args:
        what: name of the network or method in the table.
        ours: `TrainingState` of the JAX side.
        prepared: its batches.
        peers: name -> `torch_peers.steps.Steps` with the same batches.
        options: parsed command line, see `arguments`.
        work: of a step.
        share: number of learners whose losses the PyTorch side adds up. Default: 1.

    Raises:
        UserError: the losses differ.
    """
    ways = {OURS: lambda steps: ours.seconds(0, prepared[:steps]), **{n: p.seconds for n, p in peers.items()}}
    first = {name: way(CHECKED) for name, way in ways.items()}
    losses = {OURS: float(ours.loss(0)), **{name: peer.loss() / share for name, peer in peers.items()}}
    differences = {name: value for name, value in timing.loss_differences(losses, OURS).items() if name != OURS}
    timing.check_equal("the loss", differences, dict.fromkeys(peers, 3e-2 if use_float32() else 1e-4))
    each = {name: lambda way=way: 1e3 * way(options.steps) / options.steps for name, way in ways.items()}
    found = timing.compare(timing.alternate(each, options.rounds), OURS)
    ceiling = roofline.measure()
    roof = roofline.efficiency(work, ceiling, found[OURS]["median"] / 1e3)
    rows = [
        (what, _range(found[OURS]), f"{100 * roof['mfu']:.0f} %", name, _range(found[name]),
         f"{found[name]['ratio']:.2f}", f"{differences[name]:.0e}")
        for name in peers
    ]  # fmt: skip
    print(timing.markdown(HEAD, rows))
    figures = {"ms": found, "differences": differences, "first_seconds": first}
    if work.bytes:
        figures["roof"] = roof
    return {"what": what, "ceiling": vars(ceiling), **figures, "gflop": roof["gflop"], "mfu": roof["mfu"]}


def _arrays(split, rows):
    """Returns (images, labels) of rows `[batch]` or `[batch, learners]`.

    The axis of learners is the first axis of both.
    """
    rows = rows.T if rows.ndim == 2 else rows
    return split.images[rows], split.labels[rows]


def _range(summary):
    return f"{summary['median']:.1f} ({summary['q1']:.1f}-{summary['q3']:.1f})"
