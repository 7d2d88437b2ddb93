"""Results of finished runs as they are stored, for the tests of reports."""

import json

from cdl_jax.evaluation import metrics

ROWS = {"teacher": [[90.0], [80.0, 70.0]], "student": [[60.0], [50.0, 40.0]]}
AGREEMENT, KL = [[90.0], [70.0, 80.0]], [[0.125], [0.5, 0.25]]
LINES = [
    {"step": step, "task": task, "phase": phase, "epoch": 0, "loss": 2.0 / step, "pool": 0.5, "learning_rate": 0.1}
    for task, phase, steps in [(0, "teacher", (3, 6)), (0, "student", (9,)), (1, "teacher", (12, 15))]
    for step in steps
] + [{"step": 9, "task": 0, "student/accuracy": 60.0}]
ANALYSIS = {
    "tasks": 2,
    "predictions": {
        "unchanged": {"teacher": {"mean": 75.0}, "student": {"mean": 45.0}},
        "prompts_off": {"teacher": {"mean": 30.0}, "student": {"mean": 20.0}},
        "distillation_off": {"teacher": {"mean": 10.0}},
    },
    "sweeps": {
        "second_head_weight": {
            "network": "student",
            "usual": 0.5,
            "values": [{"value": 0.0, "mean": 47.0}, {"value": 0.5, "mean": 45.0}, {"value": 1.0, "mean": 3.0}],
        }
    },
    "distillation_forgetting": {"teacher/student": [[0.125], [0.38, 0.25]]},
    "cka": {},
    "tsne": {},
    "selection": {},
}
CONFIG = {"seed": 0, "learner": {"name": "l2p", "pool": 30}, "data": {"path": "a", "class_order_seed": 0}}

STORED = {"config": CONFIG, "commit": "0123abcd", "created": "2026-11-29T10:00:00+00:00"}


def results(rows=ROWS, classes=("<b>", "a & b", "c", '"d"')):
    """Returns the content of a results.json.

    Args:
      rows: network -> accuracy matrix in percent.
      classes: four class names, two for each task.
    """
    return {
        "name": "toy, cdl",
        "status": "finished",
        "seed": 0,
        "command": "python -m cdl_jax.main --config 'x.py' && echo",
        "versions": {"jax": "0.10.2"},
        "formulas": metrics.FORMULAS | metrics.SERIES,
        "networks": {
            name: {
                "accuracy_matrix": matrix,
                "metrics": {
                    **metrics.named_metrics(matrix, [10] * len(matrix)),
                    **metrics.stream_metrics([matrix[-1]], [10] * len(matrix)),
                    **metrics.calibration_metrics([[4.0], [2.0, 6.0]], [4.0, 3.0]),
                    **metrics.task_incremental_metrics([[95.0], [85.0, 75.0]]),
                },
                "per_task": metrics.series(matrix, [matrix[-1]], [10] * len(matrix)),
                "class_accuracy": [[100.0, 80.0], [75.0, 85.0, 60.0, 80.0]][: len(matrix)],
                "confusion": [{"0": 3, "2": 1}, {"1": 4}, {"2": 3, "0": 1}, {"3": 4}][: 2 * len(matrix)],
                "selection": {"layer_0": [[8, 0, 0, 0], [2, 2, 2, 2]]},
            }
            for name, matrix in rows.items()
        },
        "pairs": {
            "teacher/student": {
                "agreement_matrix": AGREEMENT,
                "kl_matrix": KL,
                "metrics": metrics.pair_metrics(AGREEMENT, KL),
            }
        }
        if len(rows) > 1
        else {},
        "stream": {
            "name": "toy",
            "num_tasks": 2,
            "tasks": [
                {"classes": list(classes[i : i + 2]), "class_ids": [i, i + 1], "train": 20, "test": 10} for i in (0, 2)
            ],
        },
        "cost": {
            "parameters": {"student": {"trainable": 1234, "frozen": 5678}},
            "flops_per_step": {"teacher": 2.5e9, "student": None},
            "images_per_second": {"teacher": 1000.0},
            "seconds": {"teacher": 12.34, "evaluation": 1.0},
            "peak_memory_bytes": 3 * 2**20,
            "device": "1 x cpu",
        },
    }


def store(folder, config, **last):
    """Stores a run of one task whose networks have the final accuracies `last`."""
    folder.mkdir()
    content = results({name: [[value]] for name, value in last.items()})
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"config": config}))
    return folder


def config_with_seed(seed, **learner):
    """Returns `CONFIG` with a seed and other options of the learner."""
    return {**CONFIG, "seed": seed, "learner": {**CONFIG["learner"], **learner}}


def store_of_method(folder, seed, method, headline, best=None, **last):
    """Stores a run of one task of a method that has a section in the config."""
    run = store(
        folder, {"seed": seed, "method": method, method: {"alpha": 1, "beta": 2}, "data": {"path": "a"}}, **last
    )
    path = run / "results.json"
    stream = {**results()["stream"], "num_tasks": 1}
    of_best = {"value": best, "accuracy": {network: [best] for network in headline}, "extra_metrics": {}}
    bests = {"best": {"0": of_best}, "extra_metrics": [{"diversity": best / 100}]} if best else {}
    path.write_text(json.dumps({**json.loads(path.read_text()), "headline": headline, "stream": stream, **bests}))
    return run


HEADS = {"": 0, "_st": 10, "_both": -4}


def store_exchanging(folder, seed, amount, last, interval=1):
    """Stores a run of two learners whose CL heads have the accuracies `last`.

    Their ST heads have ten less, both heads together four more.
    """
    folder.mkdir(exist_ok=True)
    config = {"seed": seed, "dkt": {"stream_seed": seed, "interval": interval, "teacher_runs": [f"runs/seed_{seed}"]}}
    accuracies = {f"learner_{i}{head}": value - less for i, value in enumerate(last) for head, less in HEADS.items()}
    run = store(folder / f"seed_{seed}", config, **accuracies)
    content = json.loads((run / "results.json").read_text())
    measures = [{}, {"exchanged_mb": amount} if amount else {}]
    content |= {"headline": ["learner_0", "learner_1"], "extra_metrics": measures}
    (run / "results.json").write_text(json.dumps(content))
    return run
