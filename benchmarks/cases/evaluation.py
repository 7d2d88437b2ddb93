"""Evaluation of a test set by teacher and student, against PyTorch.

    python -m benchmarks.run evaluation [--size tiny] [--learners l2p apt] [--images 160]

Ours counts accuracy, calibration and the agreement of both networks in one pass; the queries of
test images are computed once a run and are cached here, as in all evaluations after the first. PyTorch computes them
each time. The logits of all test images must be equal before anything is timed.
"""

import numpy as np

from benchmarks import cdl_sizes, roofline, timing, torch_peers
from cdl_jax.training.state import position

HEAD = ("learner", "scheme", "ours, ms an image", "% of roofline", "against", "ms an image", "ratio", "max logits diff")


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--size", choices=cdl_sizes.SIZES, default="tiny")
    parser.add_argument("--learners", nargs="+", choices=cdl_sizes.LEARNERS, default=("l2p", "coda"))
    parser.add_argument("--schemes", nargs="+", choices=cdl_sizes.SCHEMES, default=("kd_token",))
    parser.add_argument("--manners", nargs="+", choices=("authors", "tuned", "frozen"), default=("authors", "tuned"))
    parser.add_argument("--images", type=int, default=160, help="number of test images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    torch_peers.start()
    from benchmarks import compared

    bfloat16 = compared.use_bfloat16(options.precision)
    ceiling, found = roofline.measure(bfloat16), []
    print(timing.markdown(HEAD, []), flush=True)
    for learner in options.learners:
        for scheme in options.schemes:
            each = -(-options.images // 10)
            ours, peers, config = compared.both_sides(
                options.size, learner, scheme, options.manners, bfloat16, test=each
            )
            learning = ours.learning
            live, place = learning.state.mutable, position(learning.task)
            test = learning.experiment.stream.test.take(learning.task.test)

            def evaluate(learning=learning, live=live, place=place):
                start = timing.now()
                learning.evaluator.evaluate(live, learning.frozen, [learning.task], place)
                return timing.now() - start

            wanted = learning.evaluator.logits(live, learning.frozen, learning.task, place)
            wanted = np.stack([wanted["teacher"], wanted["student"]])
            differences, ways = {}, {compared.OURS: evaluate}
            for name, peer in peers.items():
                logits, _ = peer.evaluate(test, config.eval.batch_size)
                differences[name] = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
                ways[name] = lambda peer=peer, test=test, size=config.eval.batch_size: peer.evaluate(test, size)[1]
            timing.check_equal("logits", differences, compared.tolerances(peers, bfloat16))
            evaluate()  # compiles
            timed = timing.compare(timing.alternate(ways, options.rounds), compared.OURS)
            batches = -(-len(test) // config.eval.batch_size)
            work = cdl_sizes.work(config, "evaluation") * batches
            one = {"learner": learner, "scheme": scheme, "images": len(test), "differences": differences}
            one["seconds"] = timed
            found.append({**one, "roof": roofline.efficiency(work, ceiling, timed[compared.OURS]["median"])})
            for row in rows(found[-1]):
                print("| " + " | ".join(row) + " |", flush=True)
    return {"size": options.size, "bfloat16": bfloat16, "ceiling": vars(ceiling), "evaluation": found}


def rows(one: dict):
    """The table's rows of one pair: ours beside each peer."""
    times = {name: 1e3 * summary["median"] / one["images"] for name, summary in one["seconds"].items()}
    for name in times:
        if name != "ours":
            yield (
                one["learner"], one["scheme"], f"{times['ours']:.2f}", f"{100 * one['roof']['of_roof']:.0f} %", name,
                f"{times[name]:.2f}", f"{one['seconds'][name]['ratio']:.2f}", f"{one['differences'][name]:.0e}",
            )  # fmt: skip
