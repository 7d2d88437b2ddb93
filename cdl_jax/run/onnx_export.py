"""Converts a classifier of a run to ONNX, and compares both."""

import importlib.util
import logging

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend import core as jax_core

from cdl_jax.errors import UserError
from cdl_jax.methods.base import join
from cdl_jax.training.prediction import Classifier

TOLERANCE = 1e-4  # of logits, relative to the largest one
_BATCH = 3  # images of the comparison


def check_packages() -> None:
    """Checks that the converter and its runtime are installed.

    Raises:
      UserError: one of them is missing.
    """
    for package in ("jax2onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f'--onnx needs the package {package}: pip install ".[export_onnx]"')


def convert(predictor: Classifier) -> bytes:
    """Converts `images -> logits` with its weights; the number of images is free.

    The input "images" is uint8 `[n, height, width, 3]`, the output "logits" float32 `[n, classes]`.

    Returns:
      The content of an .onnx file.

    Raises:
      UserError: jax2onnx has no rule for an operation of the network, or onnxruntime computes other logits.
    """
    import jax2onnx

    variables = jax.tree.map(jnp.asarray, jax.device_get(join(predictor.frozen, predictor.mutable)))
    (count,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *predictor.input_size, 3), np.uint8)
    # jax2onnx replaces layers of flax while it traces, and its layers cannot be mapped. So it gets the traced function.
    closed = jax.make_jaxpr(lambda images: predictor.forward(variables, images))(images)
    for name in ("onnx_ir", "jax2onnx"):  # they warn of shapes without a type, and of plug-ins for other libraries
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        model = jax2onnx.to_onnx(
            lambda images: jax_core.jaxpr_as_fun(closed)(images)[0],
            inputs=[images],
            input_names=["images"],
            output_names=["logits"],
            model_name="cdl_jax",
        )
    except (NotImplementedError, TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--onnx: jax2onnx cannot convert the network ({reason}): export it without --onnx") from None
    content = model.SerializeToString()
    _compare(content, predictor, variables)
    return content


def _compare(content, predictor, variables):
    """Raises UserError if onnxruntime computes other logits than the network."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (_BATCH, *predictor.input_size, 3), np.uint8)
    (logits,) = session.run(["logits"], {"images": images})
    expected = np.asarray(predictor.forward(variables, images))
    visible = np.isfinite(expected)
    difference = np.abs(logits - expected)[visible].max() / max(1.0, np.abs(expected[visible]).max())
    if not (difference <= TOLERANCE and np.array_equal(visible, np.isfinite(logits))):
        raise UserError(
            f"--onnx: the logits of the converted network differ by {difference:.1e}, more than {TOLERANCE:.0e}: "
            "export the network without --onnx"
        )
