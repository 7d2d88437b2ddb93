"""Exports a network of a run for serving.

The folder has a program in StableHLO, its weights, class names, a README and a model card:

program.stablehlo     a function `(weights, images) -> logits`, serialized by `jax.export` for CPUs and NVIDIA GPUs. The
                      number of images is free. Queries, prompts, resize and normalization are inside. That of a
                      detector is `(weights, images, sizes) -> {"scores", "labels", "boxes"}`.
weights.safetensors   the weights that the function takes, by name
timm.safetensors      of a ViT without prompts: its weights in float32, with timm's names
model.onnx            on request: the function of a classifier with its weights, see `onnx_export`
classes.json          class names of the columns, and which of them are predicted; of a detector names by category id
README.md             what the function takes, with a loader that needs jax alone
flatbuffers/          a copy of the package by which jax reads programs, and which jax does not install
MODEL_CARD.md         data, classes, metrics, and how the network was trained
"""

import dataclasses
import json
import os
import shutil
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
from cdl_jax.evaluation import metrics
from cdl_jax.methods.base import join
from cdl_jax.models import weights as weight_files
from cdl_jax.models.weights import pretrained
from cdl_jax.run import onnx_export
from cdl_jax.run.api import DetectionNetwork, Network, Run
from cdl_jax.runtime import files, paths, target
from cdl_jax.training.prediction import Classifier, Detector

PLATFORMS = ("cpu", "cuda")


def export(run: Run, folder: Path, network: str | None = None, task: int | None = None, onnx: bool = False) -> str:
    """Exports a network with its weights after a task.

    Args:
      run: the run of the network.
      folder: of the files above; it is made. It may have an earlier export, which is replaced.
      network: name of the network; None: that of the run's headline.
      task: index of the task; None: the last one with a checkpoint.
      onnx: whether to write model.onnx too, default False.

    Returns:
      A line for the terminal.

    Raises:
      UserError: a package is missing, the folder has other files, a detector has no canvas, or `onnx` and the network
        cannot be converted.
    """
    _check_folder(folder)
    _check_flatbuffers()
    if onnx:
        onnx_export.check_packages()
    # One program for all platforms: the networks of the run may be built for a GPU. A copy builds them again.
    with target.assume(target.Target("any device", "cpu")):
        served = dataclasses.replace(run).network(network, task)
    is_detector = isinstance(served, DetectionNetwork)
    if is_detector and not any(served.predictor.input_size):
        raise UserError(
            "--mode=export: the program of a detector has a canvas of one size, and images of this run have any size: "
            "train it with augment.canvases or augment.eval_size"
        )
    if onnx and is_detector:
        raise UserError("--onnx: the program of a detector has no ONNX form: export it without --onnx")
    exported, weights = build_program(served.predictor)
    program = bytes(exported.serialize())
    model = onnx_export.convert(served.predictor) if onnx else None
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "timm.safetensors"):  # of an earlier export
        (folder / name).unlink(missing_ok=True)
    if model is not None:
        files.write_atomically(folder / "model.onnx", model)
    if (vit_params := plain_vit(served)) is not None:
        pretrained.save_timm(folder / "timm.safetensors", vit_params)
    files.write_atomically(folder / "program.stablehlo", program)
    files.write_atomically(folder / "weights.safetensors", _safetensors(weights))
    classes = json.dumps(_classes(served), indent=1, ensure_ascii=False)
    files.write_atomically(folder / "classes.json", classes + "\n")
    files.write_atomically(folder / "README.md", detector_readme(served) if is_detector else readme(served))
    files.write_atomically(folder / "MODEL_CARD.md", model_card(run, served))
    _copy_flatbuffers(folder / "flatbuffers")
    size = (len(program) + sum(x.nbytes for x in weights.values())) / 2**20
    return f"{folder}: {served.name} after task {served.task}, {size:.1f} MiB"


def build_program(predictor: Classifier | Detector) -> tuple[Any, dict[str, np.ndarray]]:
    """Builds the program of a network.

    It is `(weights, images) -> logits`, or `(weights, images, sizes) -> detections`.

    Returns:
      The program, a `jax.export.Exported`, and the weights that it reads, by name.
    """
    variables = jax.device_get(join(predictor.frozen, predictor.mutable))
    flat = flatten_dict(variables, keep_empty_nodes=True)
    weights = {".".join(path): leaf for path, leaf in flat.items() if isinstance(leaf, np.ndarray)}

    def forward(weights, *inputs):
        leaves = {path: weights.get(".".join(path), leaf) for path, leaf in flat.items()}
        return predictor.forward(unflatten_dict(leaves), *inputs)

    (count,) = jax_export.symbolic_shape("n")
    inputs = [jax.ShapeDtypeStruct((count, *predictor.input_size, 3), np.uint8)]
    if isinstance(predictor, Detector):
        inputs.append(jax.ShapeDtypeStruct((count, 2), np.int32))
    pruned, names = prune(forward, weights, *inputs)
    weights = {name: weights[name] for name in names}
    program = jax_export.export(jax.jit(pruned), platforms=PLATFORMS)(jax.eval_shape(lambda: weights), *inputs)
    return program, weights


def prune(
    function: Callable[..., Any], weights: Mapping[str, np.ndarray], *inputs: Any
) -> tuple[Callable[..., Any], list[str]]:
    """Removes the operations of a function that do not change its output.

    Examples are the operations of other networks of the run.

    >>> def function(weights, x):
    ...     weights["b"] * x
    ...     return weights["a"] + x
    >>> pruned, used = prune(function, {"a": np.ones(2), "b": np.ones(2)}, np.ones(2))
    >>> used, pruned({"a": np.ones(2)}, np.ones(2)).tolist()
    (['a'], [2.0, 2.0])

    Args:
      function: `(weights, *inputs) -> pytree of arrays`.
      weights: by name.
      *inputs: arrays, or their shapes, which may be symbolic.

    Returns:
      The function of the weights that it reads, and their names.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(dict(weights), *inputs)
    names, jaxpr = sorted(weights), closed.jaxpr  # jax sorts the keys of a dict
    needed, equations = _variables(jaxpr.outvars), []
    for equation in reversed(jaxpr.eqns):
        if needed & {*equation.outvars}:
            needed |= _variables(equation.invars)
            equations.append(equation)
    run = jax_core.jaxpr_as_fun(jax_core.ClosedJaxpr(jaxpr.replace(eqns=equations[::-1]), closed.consts))
    used = [name for name, variable in zip(names, jaxpr.invars, strict=False) if variable in needed]

    def pruned(read_weights, *inputs):
        return jax.tree.unflatten(jax.tree.structure(shapes), run(*(read_weights.get(name) for name in names), *inputs))

    return pruned, used


def plain_vit(network) -> dict[str, Any] | None:
    """Returns the parameters of a ViT without prompts, None for others."""
    variables = join(network.predictor.frozen, network.predictor.mutable).get(network.name, {})
    return jax.device_get(variables["params"]) if "params" in variables and weight_files.is_vit(variables) else None


def _classes(network) -> dict[str, Any]:
    """Returns the content of classes.json."""
    if isinstance(network, DetectionNetwork):
        return {"categories": {str(number): name for number, name in network.predictor.names.items()}}
    return {"class_names": network.class_names, "predicted": network.predictor.predictable.tolist()}


def _variables(atoms) -> set[Any]:
    """Returns the variables among the inputs or outputs of an equation.

    Literals are left out.
    """
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


def detector_readme(network: DetectionNetwork) -> str:
    """Returns README.md of a detector."""
    options, (height, width) = network.predictor.augment, network.predictor.input_size
    cap = options["eval_max_size"] or options["eval_size"] * 1333 // 800
    resize = "Before, Pillow resizes it (bilinear): both sides are rounded down to multiples of 16."
    if options["eval_size"]:
        resize = (
            f"Before, Pillow resizes it (bilinear): the shorter side to {options['eval_size']} pixels, or less where "
            f"the longer side would exceed {cap}. Both sides are then rounded down to multiples of 16."
        )
    return DETECTOR_README.format(
        name=network.name,
        task=network.task,
        height=height,
        width=width,
        resize=resize,
        platforms=" and ".join(PLATFORMS),
        loader=LOADER.strip(),
    )


def model_card(run: Run, network: Network | DetectionNetwork) -> str:
    """Returns MODEL_CARD.md."""
    results, content = run.results, configs.read(run.folder) or {}
    stream = results["stream"]
    tasks = stream["tasks"][: network.task + 1]
    rows = results["networks"][network.name]["accuracy_matrix"][: network.task + 1]
    values_by_metric, metric = metrics.named_metrics(rows, None), results["metric"]
    lines = [
        f"# {network.name} of {results['name']}",
        "",
        f"A network after task {network.task} of {stream['num_tasks']} (counted from 0), seed {run.seed}.",
        "",
        f"| task | classes | training images | test images | {metric} after task {network.task} in percent |",
        "|---|---|---|---|---|",
        *(
            f"| {index} | {', '.join(map(_cell, task['classes']))} | {task['train']} | {task['test']} | {value:.2f} |"
            for index, (task, value) in enumerate(zip(tasks, rows[-1], strict=True))
        ),
        "",
        f"- Mean {metric}: {np.mean(rows[-1]):.2f} %",
        *(f"- `{name}`: {value:.2f}" for name, value in values_by_metric.items() if value is not None),
        f"- Data: {stream['name']} (`data.name={run.config.data.name}`)",
        f"- Method: {run.config.method}",
        *_weights_lines(run.config),
        f"- Code: cdl_jax {results['versions']['cdl_jax']}, commit {content.get('commit') or 'unknown'}",
        f"- Command: `{results['command']}`",
        "- License of the exported weights: this card states none. It depends on those of the data and of the initial "
        "weights.",
    ]
    return "\n".join(lines) + "\n"


def _check_flatbuffers():
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise UserError(
            "--mode=export needs the package flatbuffers, with which jax writes programs: pip install flatbuffers"
        ) from None


def _copy_flatbuffers(folder):
    import flatbuffers

    source = Path(flatbuffers.__file__).parent
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


def _check_folder(folder):
    """Checks that an export can be written into a folder.

    Raises:
      UserError: the folder cannot be written, or has files that are no export, such as another README.md.
    """
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
    return [f"- Initial weights, `{key}`: {_origin(value)}" for key, value in names.items()]


def _origin(weights: str) -> str:
    """Returns the name of weights, with their license as far as it is known.

    >>> _origin("random"), _origin("package:glyph"), _origin("files/vit_b16.npz")
    ('random', 'package:glyph, a part of cdl_jax (Apache-2.0)', 'vit_b16.npz, under the license of its publisher')
    """
    if weights == "random":
        return weights
    if weights.startswith("package:"):
        return f"{weights}, a part of cdl_jax (Apache-2.0)"
    return f"{os.path.basename(weights.rstrip('/'))}, under the license of its publisher"


def _safetensors(weights) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(leaf).reshape(leaf.shape) for name, leaf in weights.items()})


def _cell(name):
    return str(name).replace("|", "\\|")


LOADER = """
import json, sys
import jax
from jax import export

def load(folder):
    sys.path.append(folder)  # the package flatbuffers, which jax imports
    data = open(f"{folder}/weights.safetensors", "rb").read()
    start = 8 + int.from_bytes(data[:8], "little")
    types = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I32": "int32", "U32": "uint32", "BOOL": "bool"}
    def array(dtype, shape, data_offsets):
        begin, end = (start + offset for offset in data_offsets)
        return jax.numpy.frombuffer(data[begin:end], types[dtype]).reshape(shape)
    weights = {name: array(**x) for name, x in json.loads(data[8:start]).items()}
    program = jax.jit(export.deserialize(bytearray(open(f"{folder}/program.stablehlo", "rb").read())).call)
    return lambda *inputs: program(weights, *inputs)
"""

README = """# {name} after task {task}

`program.stablehlo` has a function of weights and images, for {platforms}.

- Input: images uint8 `[n, {height}, {width}, 3]`, RGB, for any n. {first}
- Output: logits float32 `[n, {classes}]`. `classes.json` names the columns. Classes that are not predicted have -inf.

The function computes each image by itself. A learner with `batchwise=True` selects prompts for a batch in the run.

```python
{loader}
```

It needs jax alone (`pip install jax`). The folder has a copy of flatbuffers, by which jax reads programs:

```python
logits = load(".")(images)
probabilities = jax.nn.softmax(logits)
```

`weights.safetensors` has the weights by name. `MODEL_CARD.md` has data, classes and metrics.
"""

DETECTOR_README = """# {name} after task {task}

`program.stablehlo` has a function of weights, images and sizes, for {platforms}.

- Images: uint8 `[n, {height}, {width}, 3]`, RGB, for any n. Each image is at the top left, and zeros are around it.
  {resize}
  Normalization is inside.
- Sizes: int32 `[n, 2]`, (height, width) of each image without the zeros.
- Output: a dict of `scores` float32 `[n, k]` in descending order, `labels` int32 `[n, k]`, and `boxes` float32
  `[n, k, 4]`: (x0, y0, x1, y1) relative to the image, 0 to 1. `classes.json` has the category of each label. Drop
  labels that it does not have, and scores below a threshold, such as 0.3.

The function computes each image by itself, as the run does with `batch_size=1`.

```python
{loader}
```

It needs jax alone (`pip install jax`). The folder has a copy of flatbuffers, by which jax reads programs:

```python
import numpy as np

height, width, _ = image.shape
canvas = np.zeros((1, {height}, {width}, 3), np.uint8)
canvas[0, :height, :width] = image
found = load(".")(canvas, np.array([[height, width]], np.int32))
boxes = found["boxes"][0] * np.array([width, height, width, height])
```

`weights.safetensors` has the weights by name. `MODEL_CARD.md` has data, classes and metrics.
"""
