"""The weights of a ViT out of an ONNX file that torch exported, alone or under other layers, by the names of torch.

torch's exporter keeps the names of parameters that a graph uses as they are. What it transposed or cut beforehand, the
kernels of dense layers and the position embeddings, has no name of its own left and is found by where it is used.
"""

import logging
import re

import numpy as np

from cdl_jax.errors import UserError

_QUANTIZED = ("QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger",
              "QLinearMatMul", "QLinearConv", "MatMulNBits")  # fmt: skip
_PARAMETER = re.compile(r"\w+(\.\w+)*")  # unlike "onnx::MatMul_7" and "/embeddings/Constant_output_0"


def read(path) -> dict[str, np.ndarray]:
    """The parameters of the one ViT in an ONNX file, in torch's layouts and in the dtypes of the file.

    Their names are the exported module's without what stands before the ViT's own ("backbone.encoder.layer.0..." gives
    "encoder.layer.0..."); position embeddings `[1, tokens, dim]` that the exporter cut in two are "pos_embed". Tensors
    of other parts of the network are left out.

    Raises:
      UserError: the library `onnx` is missing, the numbers are quantized or in another file, or there is no class
        token.
      Exception: whatever `onnx` raises for a damaged file.
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
            f"{path} keeps its numbers in another file: save it as one, onnx.save(onnx.load(path), new_path)"
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
    for node in graph.node:  # of equal tensors the exporter keeps the first
        if node.op_type == "Identity" and node.input[0] in named:
            named[node.output[0]] = named[node.input[0]]
    made_by = {name: node for node in graph.node for name in node.output}
    kernels = _dense_kernels(graph, tensors, named, made_by)
    plain = named.keys() - kernels.values()
    found = {name: to_array(tensors[named[name]]) for name in plain}
    found.update({name: to_array(tensors[kernel]).T for name, kernel in kernels.items()})
    own = {name.removeprefix(prefix): array for name, array in found.items() if name.startswith(prefix)}
    if len(found) > len(own):
        logging.getLogger("cdl_jax").info("%s: %d tensors are of no %s*", path, len(found) - len(own), prefix)
    if parts := _positions(graph, tensors, made_by, class_token[0]):
        own["pos_embed"] = np.concatenate([to_array(tensors[name]) for name in parts], axis=1)
    return own


def _dense_kernels(graph, tensors, named, made_by) -> dict[str, str]:
    """Names of dense layers' weights -> the tensors `[in, out]`: what is multiplied by where a bias is added."""
    kernels = {}
    for node in graph.node:
        bias = [name for name in node.input if name in named and name.endswith(".bias")]
        for product in [made_by[name] for name in node.input if name in made_by]:
            if node.op_type == "Add" and bias and product.op_type == "MatMul" and product.input[1] in tensors:
                kernels[bias[0].removesuffix("bias") + "weight"] = product.input[1]
    return kernels


def _positions(graph, tensors, made_by, class_token) -> list[str]:
    """The tensors `[1, 1, dim]` and `[1, patches, dim]` of position embeddings that are joined as the graph runs, the
    patches' after a resizing to the picture's grid; none where they are whole."""
    width = tensors[class_token].dims[-1]
    for node in graph.node:
        if node.op_type != "Concat" or len(node.input) != 2:
            continue
        first, patches = node.input
        for _ in range(32):  # up through Reshape, Transpose, Cast and Resize; a damaged graph may have circles
            if patches in made_by and made_by[patches].input:
                patches = made_by[patches].input[0]
        shapes = [list(tensors[name].dims) for name in (first, patches) if name in tensors and name != class_token]
        if len(shapes) == 2 and shapes[0] == [1, 1, width] and shapes[1][::2] == [1, width]:
            return [first, patches]
    return []
