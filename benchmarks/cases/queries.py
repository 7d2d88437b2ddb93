"""Queries asked once for both phases of CDL (`cdl.same_batches`) against each phase asking for itself.

    python -m benchmarks.run queries [--size quickstart] [--learner l2p] [--scheme kd] [--steps 8] [--rounds 5]

"asked once": the teacher's step and the program that asks ahead of it, then the student's step, which reads what was
kept. Told are medians of a step over the rounds, in which the ways take turns, and the compiler's count of operations.
"""

import jax

from benchmarks import cdl_sizes, pictures, timing
from benchmarks.learning import Learning
from cdl_jax.methods import cdl
from configs import quickstart

HEAD = ("step of the", "each asks, GFLOP", "asked once", "each asks, ms (quartiles)", "asked once", "ratio")


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--size", choices=("quickstart", *cdl_sizes.SIZES), default="quickstart")
    parser.add_argument("--learner", choices=("l2p", "dualprompt", "coda"), default="l2p")
    parser.add_argument("--scheme", choices=cdl_sizes.SCHEMES, default="kd")
    parser.add_argument("--query", choices=("student", "own"), default="student")
    parser.add_argument("--steps", type=int, default=8, help="of each way in a round")
    parser.add_argument("--rounds", type=int, default=5)


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    ways = {name: _Way(options, once) for name, once in (("each", False), ("once", True))}
    found, rows, total = {}, [], dict.fromkeys(ways, 0.0)
    for index, phase in enumerate(("teacher", "student")):
        for way in ways.values():
            way.seconds(index)
        losses = {name: float(way.learning.loss(index)) for name, way in ways.items()}
        timing.check_equal("the loss", timing.apart(losses, "each"), dict.fromkeys(ways, 1e-5))
        each = {name: lambda way=way: 1e3 * way.seconds(index) / options.steps for name, way in ways.items()}  # noqa: B023
        timed = timing.compare(timing.alternate(each, options.rounds), "each")
        flops = {name: way.learning.program.flops(index) / 1e9 for name, way in ways.items()}
        total = {name: total[name] + one["median"] for name, one in timed.items()}
        found[phase] = {"ms": timed, "gflop": flops}
        speed = [f"{one['median']:.1f} ({one['q1']:.1f}-{one['q3']:.1f})" for one in timed.values()]
        rows.append((phase, *(f"{value:.3f}" for value in flops.values()), *speed, f"{timed['once']['ratio']:.2f}"))
    flops = [f"{sum(found[phase]['gflop'][name] for phase in found):.3f}" for name in ways]
    rows.append(("both", *flops, *(f"{value:.1f}" for value in total.values()), f"{total['once'] / total['each']:.2f}"))
    print(timing.markdown(HEAD, rows))
    return {"queries": found}


class _EachAsks(cdl.CDL):
    """Both phases see the same batches, and each asks for itself."""

    _asks_once = False


class _Way:
    """Both phases on the same batches; `once`: the queries are asked in the teacher's."""

    def __init__(self, options, once):
        if options.size == "quickstart":
            config, data = quickstart.get_config(f"learner={options.learner},distill={options.scheme}"), None
        else:
            config = cdl_sizes.config(options.size, options.learner, options.scheme)
            data = pictures.noise(config.student.image_size, cdl_sizes.TASKS, 10, 8 * options.steps, 2)
        config.cdl.update(query=options.query, same_batches=True)
        change = None if once else lambda method: _EachAsks(**vars(method))
        self.learning, self.once = Learning(config, data, change), once
        for index in range(2):
            self.learning.compile(index)
        self.batches = [self.learning.batches(index, options.steps) for index in range(2)]

    def seconds(self, index):
        """Of a phase's steps, with what is asked ahead of them."""
        learning, program = self.learning, self.learning.program
        step, data, seed = learning.compile(index), program.train_source.data, program.seed
        start = timing.now()
        for number, (item, place) in enumerate(self.batches[index]):
            if self.once and not index:
                told = program.constants(index, learning.frozen, item, place)
                self.batches[1][number][0]["constants"] = told
                item = {**item, "constants": told}
            learning.state = step(learning.state, learning.frozen, data, item, place, seed)
        jax.block_until_ready(learning.state.live)
        return timing.now() - start
