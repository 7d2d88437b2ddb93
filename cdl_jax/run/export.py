"""Exports a classifier of a run for serving: StableHLO with its weights, class names, a README and a model card.

program.stablehlo     a function `(weights, images) -> logits`, serialized by `jax.export` for CPUs and NVIDIA GPUs. The
                      number of images is free. Queries, prompts, resize and normalization are inside.
weights.safetensors   the weights that the function takes, by name
classes.json          class names of the columns, and which of them are predicted
README.md             what the function takes, with a loader that needs jax and flatbuffers
MODEL_CARD.md         data, classes, metrics, and how the network was trained
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from jax.extend import core as jax_core

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.methods.base import join
from cdl_jax.run.api import DetectionNetwork, Network, Run
from cdl_jax.runtime import files, paths, target
from cdl_jax.training.prediction import Classifier

PLATFORMS = ("cpu", "cuda")


def export(run: Run, folder: Path, network: str | None = None, task: int | None = None) -> str:
    """Exports a network with its weights after a task.

    Args:
      run: the run of the network.
      folder: of the files above; it is made. It may have an earlier export, which is replaced.
      network: name of the network; None: that of the run's headline.
      task: index of the task; None: the last one with a checkpoint.

    Returns:
      A line for the terminal.

    Raises:
      UserError: the network is a detector, the package flatbuffers is missing, or the folder has other files.
    """
    _check_folder(folder)
    _check_flatbuffers()
    # One program for all platforms: the networks of the run may be built for a GPU. A copy builds them again.
    with target.assume(target.Target("any device", "cpu")):
        found = dataclasses.replace(run).network(network, task)
    if isinstance(found, DetectionNetwork):
        raise UserError(f"--mode=export exports classifiers, and network {found.name!r} is a detector: use predict")
    exported, weights = build_program(found.predictor)
    program = bytes(exported.serialize())
    folder.mkdir(parents=True, exist_ok=True)
    files.write_atomically(folder / "program.stablehlo", program)
    files.write_atomically(folder / "weights.safetensors", _safetensors(weights))
    classes = {"class_names": found.class_names, "predicted": found.predictor.predictable.tolist()}
    files.write_atomically(folder / "classes.json", json.dumps(classes, indent=1, ensure_ascii=False) + "\n")
    files.write_atomically(folder / "README.md", readme(found))
    files.write_atomically(folder / "MODEL_CARD.md", model_card(run, found))
    size = (len(program) + sum(x.nbytes for x in weights.values())) / 2**20
    return f"{folder}: {found.name} after task {found.task}, {size:.1f} MiB"


def build_program(classifier: Classifier) -> tuple[Any, dict[str, np.ndarray]]:
    """Builds the program `(weights, images) -> logits`.

    Returns:
      The program, a `jax.export.Exported`, and the weights that it reads, by name.
    """
    variables = jax.device_get(join(classifier.frozen, classifier.mutable))
    flat = flatten_dict(variables, keep_empty_nodes=True)
    weights = {".".join(path): leaf for path, leaf in flat.items() if isinstance(leaf, np.ndarray)}

    def forward(weights, images):
        leaves = {path: weights.get(".".join(path), leaf) for path, leaf in flat.items()}
        return classifier.forward(unflatten_dict(leaves), images)

    (count,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *classifier.input_size, 3), np.uint8)
    pruned, used = prune(forward, weights, images)
    kept = {name: weights[name] for name in used}
    return jax_export.export(jax.jit(pruned), platforms=PLATFORMS)(jax.eval_shape(lambda: kept), images), kept


def prune(
    function: Callable[[dict[str, Any], Any], jax.Array], weights: Mapping[str, np.ndarray], images: Any
) -> tuple[Callable[[dict[str, Any], Any], jax.Array], list[str]]:
    """Removes the operations of a function that do not change its output, such as other networks of the run.

    >>> def function(weights, x):
    ...     weights["b"] * x
    ...     return weights["a"] + x
    >>> pruned, used = prune(function, {"a": np.ones(2), "b": np.ones(2)}, np.ones(2))
    >>> used, pruned({"a": np.ones(2)}, np.ones(2)).tolist()
    (['a'], [2.0, 2.0])

    Args:
      function: `(weights, images) -> array`.
      weights: by name.
      images: an array, or its shape, which may be symbolic.

    Returns:
      The function of the weights that it reads, and their names.
    """
    closed = jax.make_jaxpr(function)(dict(weights), images)
    names, jaxpr = sorted(weights), closed.jaxpr  # jax sorts the keys of a dict
    needed, equations = _variables(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if needed & {*equation.outvars}:
            needed |= _variables(equation.invars)
            equations.append(equation)
    run = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(jaxpr.replace(eqns=equations[::-1]), closed.consts))
    used = [name for name, variable in zip(names, jaxpr.invars, strict=False) if variable in needed]
    return lambda own, images: run(*(own.get(name) for name in names), images)[0], used


def _variables(atoms) -> set[Any]:
    """Returns the variables among the inputs or outputs of an equation; literals are left out."""
    return {atom for atom in atoms if isinstance(atom, jax_core.Var)}


def readme(network: Network) -> str:
    """Returns README.md: inputs, outputs, preprocessing and a loader."""
    classifier = network.predictor
    height, width = classifier.input_size
    return README.format(
        name=network.name,
        task=network.task,
        height=height,
        width=width,
        classes=len(network.class_names),
        first=_preprocessing(classifier),
        platforms=" and ".join(PLATFORMS),
        loader=LOADER.strip(),
    )


def model_card(run: Run, network: Network) -> str:
    """Returns MODEL_CARD.md."""
    results, content = run.results, configs.read(run.folder) or {}
    stream = results["stream"]
    tasks = stream["tasks"][: network.task + 1]
    row = run.matrices[network.name][network.task, : network.task + 1]
    lines = [
        f"# {network.name} of {results['name']}",
        "",
        f"A network after task {network.task} of {stream['num_tasks']} (counted from 0), seed {run.seed}.",
        "",
        f"| task | classes | training images | test images | accuracy after task {network.task} in percent |",
        "|---|---|---|---|---|",
        *(
            f"| {index} | {', '.join(map(_cell, task['classes']))} | {task['train']} | {task['test']} | {value:.2f} |"
            for index, (task, value) in enumerate(zip(tasks, row, strict=True))
        ),
        "",
        f"- Mean accuracy: {row.mean():.2f} %",
        f"- Data: {stream['name']} (`data.name={run.config.data.name}`)",
        f"- Method: {run.config.method}",
        *_weights_lines(run.config),
        f"- Code: cdl_jax {results['versions']['cdl_jax']}, commit {content.get('commit') or 'unknown'}",
        f"- Command: `{results['command']}`",
        "- License: this card states none. Those of the data and of the pretrained weights are their publishers'.",
    ]
    return "\n".join(lines) + "\n"


def _check_flatbuffers():
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UserError(
            "--mode=export needs the package flatbuffers, with which jax writes programs: pip install flatbuffers"
        ) from None


def _check_folder(folder):
    """Raises UserError if the folder cannot be written, or has files that are no export, such as another README.md."""
    paths.check_output_folder(folder, "--output")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "program.stablehlo").exists():
        raise UserError(f"--output={folder} has files that are no export: name an empty folder, or a new one")


def _preprocessing(classifier) -> str:
    """Returns the steps before the function, in words."""
    options, (height, width) = classifier.augment, classifier.input_size
    if classifier.device_size:
        return "Resize and normalization are inside: give images as they are decoded."
    how = f"Pillow, {options['interpolation']}"
    if options["test"] == "resize_center_crop":
        first = (
            f"resize the shorter side to {options['resize']} pixels ({how}), then cut the central {height} x {width}"
        )
    else:
        first = f"resize all of the image to {height} x {width} pixels ({how})"
    return f"Normalization is inside. Before it, as in the run: {first}."


def _weights_lines(config) -> list[str]:
    flat = configs.flatten(config)
    names = {key: value for key, value in flat.items() if key.endswith(".weights") and isinstance(value, str) and value}
    return [f"- Initial weights, `{key}`: {os.path.basename(value.rstrip('/'))}" for key, value in names.items()]


def _safetensors(weights) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(leaf).reshape(leaf.shape) for name, leaf in weights.items()})


def _cell(name):
    return str(name).replace("|", "\\|")


LOADER = """
import json
import jax
from jax import export

def load(folder):
    data = open(f"{folder}/weights.safetensors", "rb").read()
    start = 8 + int.from_bytes(data[:8], "little")
    types = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "BOOL": "bool"}
    weights = {}
    for name, x in json.loads(data[8:start]).items():
        begin, end = x["data_offsets"]
        array = jax.numpy.frombuffer(data[start + begin : start + end], types[x["dtype"]])
        weights[name] = array.reshape(x["shape"])
    program = jax.jit(export.deserialize(bytearray(open(f"{folder}/program.stablehlo", "rb").read())).call)
    return lambda images: program(weights, images)
"""

README = """# {name} after task {task}

`program.stablehlo` has a function of weights and images, for {platforms}.

- Input: images uint8 `[n, {height}, {width}, 3]`, RGB, for any n. {first}
- Output: logits float32 `[n, {classes}]`. `classes.json` names the columns. Classes that are not predicted have -inf.

The function computes each image by itself. A learner with `batchwise=True` selects prompts for a batch in the run.

```python
{loader}
```

It needs jax and flatbuffers, by which jax reads programs (`pip install jax flatbuffers`):

```python
logits = load(".")(images)
probabilities = jax.nn.softmax(logits)
```

`weights.safetensors` has the weights by name. `MODEL_CARD.md` has data, classes and metrics.
"""
