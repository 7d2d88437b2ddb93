"""Compares the representations of a run's networks on test images, and embeds features in the plane.

Both use `methods.base.Method.features` with the weights of one checkpoint.
"""

from collections import OrderedDict

import jax
import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.evaluation import similarity
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.state import position

_COMPARED = 2048  # test pictures by which layers are compared, at most
_DRAWN, _CLASSES = 400, 10  # test pictures that are laid out, and of how many classes they are, at most


def compare_representations(evaluator: Evaluator, mutable, frozen, tasks) -> tuple[dict, dict]:
    """Compares the layers of a run's networks on the test images of tasks, and embeds features in the plane.

    Returns:
      Two dicts, both {} where the method has no features.
      alignment: `images`, the number that is compared; `layers`, network -> names; `pairs`, `<network>/<network>` ->
        linear centered kernel alignment of the first one's layers (rows) and the other's, each network with itself too;
        None where a layer is constant.
      places: `classes`, names of those that are embedded; `labels`, for each image an index into them; `networks`, name
        -> `[[x, y], ...]`; `missing`, why nothing is embedded, or "".
    """
    steps, at = evaluator.steps, position(tasks[-1])
    experiment, loader = steps.experiment, steps.test_loader

    def features(variables, images, context):  # in order, because a compiled step sorts the keys of a dict
        networks = experiment.method.features(variables, images, context)
        return OrderedDict((name, OrderedDict(layers)) for name, layers in networks.items() if layers)

    step = steps.predict_step(features, loader)
    if not jax.eval_shape(step, mutable, frozen, loader.data, steps.abstract_test_batch(loader), at):
        return {}, {}
    rows = np.concatenate([task.test for task in (experiment.stream.tasks if experiment.plan.multi_learner else tasks)])

    def features_of(rows):
        return evaluator.each_batch(step, mutable, frozen, loader, rows, at)

    alignment = _alignment(features_of, rows, experiment.config.eval.batch_size)
    return alignment, _places(features_of, rows, experiment.stream)


def _alignment(features_of, rows, batch):
    count = min(len(rows), _COMPARED)
    count = count - count % batch or count  # whole batches, which weigh alike
    if count < 4:
        return {}
    rows = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    if count > batch:
        rows = rows.reshape(batch, -1).T.ravel()  # every batch has pictures of all tasks
    layers = {}

    def flat():
        for part in features_of(rows):
            layers.update({network: list(own) for network, own in part.items()})
            found = [value for own in part.values() for value in own.values()]
            yield found, found

    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = similarity.cka(flat())
    ends = np.cumsum([len(names) for names in layers.values()])
    spans = {name: slice(end - len(own), end) for (name, own), end in zip(layers.items(), ends, strict=True)}
    pairs = {
        f"{first}/{second}": [[float(x) if np.isfinite(x) else None for x in row] for row in matrix[a, b]]
        for i, (first, a) in enumerate(spans.items())
        for second, b in list(spans.items())[i:]
    }
    return {"images": count, "layers": layers, "pairs": pairs}


def _places(features_of, rows, stream):
    labels = stream.test.labels[rows]
    seen = np.unique(labels)
    chosen = seen[np.linspace(0, len(seen) - 1, min(len(seen), _CLASSES)).astype(int)]
    rows = np.concatenate([rows[labels == label][: _DRAWN // len(chosen)] for label in chosen])
    parts = [{name: own["features"] for name, own in part.items() if "features" in own} for part in features_of(rows)]
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
