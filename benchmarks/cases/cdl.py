"""CDL: a step of the teacher and of the student against PyTorch.

    python -m benchmarks.run cdl                              # every learner with either scheme
    python -m benchmarks.run cdl --size b_s --learners l2p    # ViT-B teaches ViT-S
    python -m benchmarks.run cdl --plan                       # operations and bytes of all sizes, nothing is run
    python -m benchmarks.run cdl --read FILE.json ...         # what earlier calls found, in one table

PyTorch is timed as the authors have it ("authors") and as fast as it can be ("tuned"). Losses of three steps of each
phase must be equal before it is timed. A ratio above 1 means that ours is faster. On a GPU ours and the tuned peer
compute in bfloat16 (--precision). `--manners` without a name times this program alone, without PyTorch.
"""

import json
from pathlib import Path

from benchmarks import cdl_sizes, roofline, timing, torch_peers

HEAD = ("learner", "scheme", "step of the", "ours, ms (quartiles)", "% of roofline", "against", "ms (quartiles)",
        "ratio", "max loss diff")  # fmt: skip


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--size", choices=cdl_sizes.SIZES, default="tiny")
    parser.add_argument("--learners", nargs="+", choices=cdl_sizes.LEARNERS, default=cdl_sizes.LEARNERS)
    parser.add_argument("--schemes", nargs="+", choices=cdl_sizes.SCHEMES, default=cdl_sizes.SCHEMES)
    parser.add_argument("--manners", nargs="*", choices=("authors", "tuned", "frozen"), default=("authors", "tuned"))
    parser.add_argument("--phases", nargs="+", choices=("teacher", "student"), default=("teacher", "student"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of each side in a round")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--read", nargs="+", type=Path, help="figures of earlier calls to show again; nothing is run")
    parser.add_argument("--plan", action="store_true", help="operations and bytes of every size; nothing is run")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    if options.plan:
        return plan()
    if options.read:
        found = [one for file in options.read for one in json.loads(file.read_text())["steps"]]
        print(timing.markdown(HEAD, [row for one in found for row in rows(one)]))
        return {"steps": found}
    if options.manners:
        torch_peers.start()
    from benchmarks import compared

    bfloat16 = compared.use_bfloat16(options.precision)
    ceiling = roofline.measure(bfloat16)
    print(f"At most {ceiling.flops / 1e9:.0f} GFLOP/s and {ceiling.bandwidth / 1e9:.1f} GB/s.\n")
    print(timing.markdown(HEAD, []), flush=True)
    found = []
    for learner in options.learners:
        for scheme in options.schemes:
            ours, peers, config = compared.both_sides(options.size, learner, scheme, options.manners, bfloat16)
            for index, phase in enumerate(("teacher", "student")):
                if phase not in options.phases:
                    continue
                differences, first = compared.check_same_losses(ours, peers, index, options.steps, bfloat16)
                ways = {compared.OURS: ours, **peers}
                timed = timing.alternate(
                    {
                        name: lambda side=side, index=index: 1e3 * side.seconds(index, options.steps) / options.steps
                        for name, side in ways.items()
                    },
                    options.rounds,
                )
                one = {
                    "learner": learner,
                    "scheme": scheme,
                    "phase": phase,
                    "differences": differences,
                    "first_seconds": first,
                }
                one["ms"] = timing.compare(timed, compared.OURS)
                seconds = one["ms"][compared.OURS]["median"] / 1e3
                one["roof"] = roofline.efficiency(cdl_sizes.work(config, phase), ceiling, seconds)
                found.append(one)
                for row in rows(one):
                    print("| " + " | ".join(row) + " |", flush=True)
    return {"size": options.size, "bfloat16": bfloat16, "ceiling": vars(ceiling), "steps": found}


def rows(one: dict):
    """The table's rows of one phase: ours beside each peer, or alone."""
    ours, peers = one["ms"]["ours"], {name: peer for name, peer in one["ms"].items() if name != "ours"}
    own = (
        one["learner"], one["scheme"], one["phase"], _range(ours), f"{100 * one['roof']['of_roof']:.0f} %",
    )  # fmt: skip
    if not peers:
        yield (*own, "", "", "", "")
    for name, peer in peers.items():
        yield (*own, name, _range(peer), f"{peer['ratio']:.2f}", f"{one['differences'][name]:.0e}")


def _range(summary):
    return f"{summary['median']:.0f} ({summary['q1']:.0f}-{summary['q3']:.0f})"


def plan() -> dict:
    """Operations and bytes of a step, for every size, learner and scheme."""
    head, lines, found = ("size", "learner", "scheme", "batch", "teacher, GFLOP (GB)", "student, GFLOP (GB)"), [], []
    for size in cdl_sizes.SIZES:
        for learner in cdl_sizes.LEARNERS:
            for scheme in cdl_sizes.SCHEMES:
                config = cdl_sizes.config(size, learner, scheme)
                works = {phase: cdl_sizes.work(config, phase) for phase in ("teacher", "student")}
                batch = config.train.batch_size
                cells = [f"{work.flops / 1e9:,.0f} ({work.bytes / 1e9:.1f})" for work in works.values()]
                lines.append((size, learner, scheme, batch, *cells))
                found.append({"size": size, "learner": learner, "scheme": scheme, "batch": batch})
                found[-1] |= {phase: vars(work) for phase, work in works.items()}
    print(timing.markdown(head, lines))
    return {"plan": found}
