"""Compares the representations of a run's networks on test images.

The module also embeds features in the plane. Both use `methods.base.Method.features` with the weights of one
checkpoint.
"""

import logging
from collections import OrderedDict

import jax
import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.evaluation import similarity
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.state import position

_MAX_COMPARED = 2048  # test images that compare layers
_MAX_EMBEDDED, _MAX_CLASSES = 400, 10  # test images that are embedded, and their classes


def compare_representations(evaluator: Evaluator, mutable, frozen, tasks) -> tuple[dict, dict]:
    """Compares the layers of a run's networks on the test images of tasks.

    The function also embeds features in the plane.

    Returns:
      Two dicts, both {} where the method has no features.
      cka: `images`, the number that is compared; `layers`, network -> names; `pairs`, `<network>/<network>` ->
        linear centered kernel alignment of the first one's layers (rows) and the other's, each network with itself too;
        None where a layer is constant.
      tsne: `classes`, names of those that are embedded; `labels`, for each image an index into them; `networks`, name
        -> `[[x, y], ...]`; `missing`, why nothing is embedded, or "".
    """
    steps, at = evaluator.steps, position(tasks[-1])
    experiment, loader = steps.experiment, steps.test_loader

    def features(variables, images, context):  # in order, because a compiled step sorts the keys of a dict
        networks = experiment.method.features(variables, images, context)
        return OrderedDict((name, OrderedDict(layers)) for name, layers in networks.items() if layers)

    step = steps.predict_step(features, loader)
    if not jax.eval_shape(step, mutable, frozen, loader.data, steps.abstract_sequential_batch(loader), at):
        return {}, {}
    rows = np.concatenate([task.test for task in (experiment.stream.tasks if experiment.plan.multi_learner else tasks)])

    def features_of(rows):
        return evaluator.each_batch(step, mutable, frozen, loader, rows, at)

    cka = _compare_layers(features_of, rows, experiment.config.eval.batch_size)
    return cka, _embed_2d(features_of, rows, experiment.stream)


def _compare_layers(features_of, rows, batch):
    count = min(len(rows), _MAX_COMPARED)
    if batch < 4:
        logging.getLogger("cdl_jax").warning("layers are not compared: eval.batch_size=%d is below 4", batch)
        return {}
    count = count - count % batch or count  # full batches, which have equal weights
    if count < 4:
        return {}
    rows = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    if count > batch:
        rows = rows.reshape(batch, -1).T.ravel()  # every batch has images of all tasks
    layers = {}

    def batches():
        for part in features_of(rows):
            layers.update({network: list(outputs) for network, outputs in part.items()})
            flat = [value for outputs in part.values() for value in outputs.values()]
            yield flat, flat

    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = similarity.cka(batches())
    ends = np.cumsum([len(names) for names in layers.values()])
    spans = {name: slice(end - len(names), end) for (name, names), end in zip(layers.items(), ends, strict=True)}
    pairs = {
        f"{first}/{second}": [[float(x) if np.isfinite(x) else None for x in row] for row in matrix[a, b]]
        for i, (first, a) in enumerate(spans.items())
        for second, b in list(spans.items())[i:]
    }
    return {"images": count, "layers": layers, "pairs": pairs}


def _embed_2d(features_of, rows, stream):
    labels = stream.test.labels[rows]
    present = np.unique(labels)
    chosen = present[np.linspace(0, len(present) - 1, min(len(present), _MAX_CLASSES)).astype(int)]
    rows = np.concatenate([rows[labels == label][: _MAX_EMBEDDED // len(chosen)] for label in chosen])
    parts = [
        {name: layers["features"] for name, layers in part.items() if "features" in layers}
        for part in features_of(rows)
    ]
    networks, missing = {}, ""
    try:
        for name in parts[0]:
            features = np.concatenate([part[name] for part in parts])
            networks[name] = similarity.tsne(features, min(30.0, (len(rows) - 1) / 3)).tolist()
    except UserError as error:
        missing = str(error)
    return {
        "classes": [stream.class_names[label] for label in chosen],
        "labels": np.searchsorted(chosen, stream.test.labels[rows]).tolist(),
        "networks": networks,
        "missing": missing,
    }
