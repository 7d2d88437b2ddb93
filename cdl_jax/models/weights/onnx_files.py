"""Reads the weights of a ViT from an ONNX file that torch exported.

The ViT is alone or below other layers. The weights have torch's names. torch's exporter keeps the names of parameters
that a graph uses unchanged. Parameters that it transposed or split, the kernels of dense layers and the position
embeddings, lose their names and are found by the nodes that use them.
"""

import logging
import re
from pathlib import Path

import numpy as np

from cdl_jax.errors import UserError

_QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger",
              "QLinearMatMul", "QLinearConv", "MatMulNBits")  # fmt: skip
_PARAMETER = re.compile(r"\w+(\.\w+)*")  # unlike "onnx::MatMul_7" and "/embeddings/Constant_output_0"


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the parameters of the only ViT in an ONNX file.

    Tensors of other parts of the network are left out.

    Args:
      path: the file.

    Returns:
      Name -> array in torch's layout and in the dtype of the file. Names have no prefix of the modules around the ViT
      ("backbone.encoder.layer.0..." becomes "encoder.layer.0..."). Position embeddings `[1, tokens, dim]` that the
      exporter split in two are "pos_embed".

    Raises:
      UserError: the library `onnx` is missing, the numbers are quantized or in another file, or there is no class
        token.
      Exception: any exception of `onnx` for a damaged file.
    """
    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        raise UserError(f"{path} is read with the library onnx, which is missing: pip install onnx") from None
    graph = onnx.load(path, format="protobuf", load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors.values()):
        raise UserError(
            f"{path} stores its numbers in another file: save it as one, onnx.save(onnx.load(path), new_path)"
        )
    if integer := [node.op_type for node in graph.node if node.op_type in _QUANTIZED]:
        raise UserError(f"{path} is quantized ({integer[0]}): take the export in float32 or float16")
    class_token = [name for name in tensors if re.fullmatch(r"(.*\.)?cls_token", name)]
    if len(class_token) != 1:
        raise UserError(
            f"{path} has {len(class_token)} tensors called cls_token among its {len(tensors)}, a ViT has one: "
            "export a single ViT, its parameters under their own names"
        )
    prefix = class_token[0].removesuffix("cls_token").removesuffix("embeddings.")

    named = {name: name for name in tensors if _PARAMETER.fullmatch(name) and tensors[name].dims}
    for node in graph.node:  # the exporter keeps only the first of equal tensors
        if node.op_type == "Identity" and node.input[0] in named:
            named[node.output[0]] = named[node.input[0]]
    producers = {name: node for node in graph.node for name in node.output}
    kernels = _dense_kernels(graph, tensors, named, producers)
    unchanged = named.keys() - kernels.values()
    tensors_by_name = {name: to_array(tensors[named[name]]) for name in unchanged}
    tensors_by_name.update({name: to_array(tensors[kernel]).T for name, kernel in kernels.items()})
    state = {name.removeprefix(prefix): array for name, array in tensors_by_name.items() if name.startswith(prefix)}
    if len(tensors_by_name) > len(state):
        logging.getLogger("cdl_jax").info(
            "%s: %d tensors are not of %s*", path, len(tensors_by_name) - len(state), prefix
        )
    if parts := _positions(graph, tensors, producers, class_token[0]):
        state["pos_embed"] = np.concatenate([to_array(tensors[name]) for name in parts], axis=1)
    return state


def _dense_kernels(graph, tensors, named, producers) -> dict[str, str]:
    """Returns name of the weight of a dense layer -> name of its tensor `[in, out]`.

    The tensor is the factor before the bias of the layer.
    """
    kernels = {}
    for node in graph.node:
        bias = [name for name in node.input if name in named and name.endswith(".bias")]
        for product in [producers[name] for name in node.input if name in producers]:
            if node.op_type == "Add" and bias and product.op_type == "MatMul" and product.input[1] in tensors:
                kernels[bias[0].removesuffix("bias") + "weight"] = product.input[1]
    return kernels


def _positions(graph, tensors, producers, class_token) -> list[str]:
    """Returns the names of the two tensors of position embeddings.

    The tensors are `[1, 1, dim]` and `[1, patches, dim]`. The graph concatenates them, after it has resized those of
    the patches to the grid of the image. Returns [] if they are one tensor.
    """
    width = tensors[class_token].dims[-1]
    for node in graph.node:
        if node.op_type != "Concat" or len(node.input) != 2:
            continue
        first, patches = node.input
        for _ in range(32):  # up through Reshape, Transpose, Cast and Resize; a damaged graph may have cycles
            if patches in producers and producers[patches].input:
                patches = producers[patches].input[0]
        shapes = [list(tensors[name].dims) for name in (first, patches) if name in tensors and name != class_token]
        if len(shapes) == 2 and shapes[0] == [1, 1, width] and shapes[1][::2] == [1, width]:
            return [first, patches]
    return []
