"""How the networks of a run see test pictures: which of their layers see alike, and where classes lie in the plane.

Made of what a method offers as `features` (see `methods.base.Method`), with the weights of one checkpoint.
"""

from collections import OrderedDict

import jax
import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.evaluation import similarity
from cdl_jax.training import steps as trainer

_COMPARED = 2048  # test pictures by which layers are compared, at most
_DRAWN, _CLASSES = 400, 10  # test pictures that are laid out, and of how many classes they are, at most


def look(program, live, frozen, tasks) -> tuple[dict, dict]:
    """(`alignment`, `places`) of the run's networks on the test pictures of `tasks`; {} where it has no features.

    alignment: images, how many are compared; layers, network -> names; pairs, `<network>/<network>` -> linear centred
      kernel alignment of the first one's layers (rows) and the other's, each network with itself too; None where a
      layer is constant.
    places: classes, names of those that are laid out; labels, for each picture an index into them; networks, name ->
      `[[x, y], ...]`; missing, why nothing is laid out, or "".
    """

    def tell(*at):  # a compiled step would sort a dict's keys
        seen = program.method.features(*at)
        return OrderedDict((name, OrderedDict(layers)) for name, layers in seen.items() if layers)

    step = program.telling(tell, program.test_source)
    place = trainer.position(tasks[-1])
    data, item = program.test_source.data, program._test_item(program.test_source, "test")
    if not jax.eval_shape(step, live, frozen, data, item, place):
        return {}, {}
    rows = np.concatenate([task.test for task in (program.stream.tasks if program.plan.multi_learner else tasks)])

    def told(rows):
        return program.each_batch(step, live, frozen, program.test_source, rows, place)

    return _alignment(told, rows, program.config.eval.batch_size), _places(told, rows, program.stream)


def _alignment(told, rows, batch):
    count = min(len(rows), _COMPARED)
    count = count - count % batch or count  # whole batches, which weigh alike
    if count < 4:
        return {}
    rows = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    if count > batch:
        rows = rows.reshape(batch, -1).T.ravel()  # every batch has pictures of all tasks
    layers = {}

    def flat():
        for part in told(rows):
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


def _places(told, rows, stream):
    labels = stream.test.labels[rows]
    seen = np.unique(labels)
    chosen = seen[np.linspace(0, len(seen) - 1, min(len(seen), _CLASSES)).astype(int)]
    rows = np.concatenate([rows[labels == label][: _DRAWN // len(chosen)] for label in chosen])
    parts = [{name: own["features"] for name, own in part.items() if "features" in own} for part in told(rows)]
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
