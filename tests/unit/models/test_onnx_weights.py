"""A ViT in an ONNX file of torch, below other layers, computes as the graph does."""

import sys

import jax
import numpy as np
import onnx
import pytest
from flax.traverse_util import flatten_dict
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from cdl_jax.errors import UserError
from cdl_jax.models import weights
from cdl_jax.models.vit import ViT
from cdl_jax.models.weights.pretrained import load_vit, to_timm

DIM, DEPTH, HEADS, PATCH, TABLE = 12, 2, 3, 4, 3


def vit(grid):
    return ViT(dim=DIM, depth=DEPTH, heads=HEADS, patch_size=PATCH, image_size=grid * PATCH, layer_scale=1.0)


def random_params(grid=TABLE, seed=0):
    images = jax.ShapeDtypeStruct((1, grid * PATCH, grid * PATCH, 3), np.float32)
    shapes = jax.eval_shape(vit(grid).init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32) / 2, shapes)


def assert_same(params, expected):
    params, expected = flatten_dict(params, sep="/"), flatten_dict(expected, sep="/")
    assert params.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(params[name], array, err_msg=name)


class Graph:
    """Nodes and tensors in the order in which they are made; every call gives a name."""

    def __init__(self):
        self.nodes, self.tensors = [], []

    def tensor(self, name, array):
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def nameless(self, array):
        return self.tensor(f"onnx::MatMul_{len(self.tensors)}", array)

    def op(self, kind, *inputs, **attributes):
        inputs = [self.nameless(each) if isinstance(each, np.ndarray) else each for each in inputs]
        self.nodes.append(helper.make_node(kind, inputs, [f"/{kind}_{len(self.nodes)}_output_0"], **attributes))
        return self.nodes[-1].output[0]

    def dense(self, x, name, weight, bias):
        """As torch exports it: the bias has a name, the kernel `[in, out]` has none."""
        return self.op("Add", self.tensor(f"{name}.bias", bias), self.op("MatMul", x, np.ascontiguousarray(weight.T)))

    def save(self, path, output=None, **options):
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)] if output else []
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "main_graph", [image], outputs, self.tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)]), path, **options)
        return path


def ints(*values):
    return np.asarray(values, np.int64)


def exported(path, params, grid):
    """Writes Hugging Face's DINOv2 with a layer on top, as torch exports it.

    The images have `grid` by `grid` patches.
    """
    state, graph, root = to_timm(params), Graph(), "net.backbone"
    op, tokens = graph.op, 1 + grid * grid

    def named(theirs, ours):
        return graph.tensor(f"{root}.{theirs}", state[ours])

    def norm(x, theirs, ours):
        centered = op("Sub", x, op("ReduceMean", x, axes=[-1]))
        variance = op("ReduceMean", op("Mul", centered, centered), axes=[-1])
        x = op("Div", centered, op("Sqrt", op("Add", variance, np.asarray(1e-6, np.float32))))
        return op(
            "Add", op("Mul", x, named(f"{theirs}.weight", f"{ours}.weight")), named(f"{theirs}.bias", f"{ours}.bias")
        )

    def split(x, order):
        return op("Transpose", op("Reshape", x, ints(-1, tokens, HEADS, DIM // HEADS)), perm=order)

    class_token = named("embeddings.cls_token", "cls_token")
    projection = "embeddings.patch_embeddings.projection"
    kernel = [named(f"{projection}.{leaf}", f"patch_embed.proj.{leaf}") for leaf in ("weight", "bias")]
    x = op("Conv", "image", *kernel, strides=[PATCH, PATCH])
    x = op("Concat", class_token, op("Transpose", op("Reshape", x, ints(1, DIM, -1)), perm=[0, 2, 1]), axis=1)
    table = op("Reshape", state["pos_embed"][:, 1:], ints(1, TABLE, TABLE, DIM))
    table = op("Resize", op("Transpose", table, perm=[0, 3, 1, 2]), "", "", ints(1, DIM, grid, grid), mode="cubic",
               cubic_coeff_a=-0.75, coordinate_transformation_mode="half_pixel")  # fmt: skip
    table = op("Reshape", op("Transpose", table, perm=[0, 2, 3, 1]), ints(1, -1, DIM))
    x = op("Add", x, op("Concat", state["pos_embed"][:, :1], table, axis=1))
    for i in range(DEPTH):
        theirs, ours = f"encoder.layer.{i}", f"blocks.{i}"
        y, parts = norm(x, f"{theirs}.norm1", f"{ours}.norm1"), {}
        for which in ("key", "value", "query"):  # in the exporter's order, which is not timm's
            rows = slice(*(DIM * (("query", "key", "value").index(which) + n) for n in (0, 1)))
            weight, bias = (state[f"{ours}.attn.qkv.{leaf}"][rows] for leaf in ("weight", "bias"))
            parts[which] = graph.dense(y, f"{root}.{theirs}.attention.attention.{which}", weight, bias)
        scores = op("MatMul", split(parts["query"], [0, 2, 1, 3]), split(parts["key"], [0, 2, 3, 1]))
        scores = op("Softmax", op("Mul", scores, np.asarray((DIM // HEADS) ** -0.5, np.float32)), axis=-1)
        y = op("MatMul", scores, split(parts["value"], [0, 2, 1, 3]))
        y = op("Reshape", op("Transpose", y, perm=[0, 2, 1, 3]), ints(1, tokens, DIM))
        for half, names in ((1, [("attention.output.dense", "attn.proj")]), (2, [("mlp.fc1",) * 2, ("mlp.fc2",) * 2])):
            if half == 2:
                y = norm(x, f"{theirs}.norm2", f"{ours}.norm2")
            for a, b in names:
                weight, bias = (state[f"{ours}.{b}.{leaf}"] for leaf in ("weight", "bias"))
                y = graph.dense(y, f"{root}.{theirs}.{a}", weight, bias)
                if a == "mlp.fc1":
                    erf = op("Erf", op("Div", y, np.asarray(2**0.5, np.float32)))
                    y = op("Mul", op("Mul", y, op("Add", erf, np.asarray(1, np.float32))), np.asarray(0.5, np.float32))
            x = op("Add", op("Mul", y, named(f"{theirs}.layer_scale{half}.lambda1", f"{ours}.ls{half}.gamma")), x)
    x = norm(x, "layernorm", "norm")
    graph.dense(x, "net.decoder.out", np.ones((1, DIM), np.float32), np.zeros(1, np.float32))
    return graph.save(path, x)


def test_an_exported_dinov2_computes_what_its_graph_does(tmp_path):
    params, grid = random_params(), 2
    path = exported(tmp_path / "w.onnx", params, grid)
    image = np.random.default_rng(1).standard_normal((1, grid * PATCH, grid * PATCH, 3), dtype=np.float32)
    (expected,) = ReferenceEvaluator(str(path)).run(None, {"image": image.transpose(0, 3, 1, 2)})
    _, out = vit(grid).apply({"params": load_vit(path, random_params(grid))}, image)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(out["tokens"], expected, atol=1e-5)
    assert_same(load_vit(path, params), params)


def test_names_of_timm_and_equal_tensors_that_are_kept_once(tmp_path):
    params, graph = random_params(), Graph()
    params["block_1"]["norm2"] = params["block_1"]["norm1"]
    state = to_timm(params)
    for name, array in state.items():
        if name.endswith(".weight") and array.ndim == 2:
            graph.dense("image", name.removesuffix(".weight"), array, state[name.replace("weight", "bias")])
        elif name.startswith("blocks.1.norm2"):
            graph.nodes.append(helper.make_node("Identity", [name.replace("norm2", "norm1")], [name]))
        elif name not in [tensor.name for tensor in graph.tensors]:
            graph.tensor(name, array)
    path = graph.save(tmp_path / "w.onnx")
    assert_same(weights.load(str(path), params, "teacher.weights"), params)


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    params = random_params()
    path = exported(tmp_path / "sound.onnx", params, 2)
    content, wrong = path.read_bytes(), tmp_path / "w.onnx"

    def refusal():
        with pytest.raises(UserError) as refused:
            load_vit(wrong, params)
        assert str(wrong) in str(refused.value)
        return str(refused.value)

    wrong.write_bytes(content[: len(content) // 2])
    assert "damaged or not a weight file" in refusal() and "download it again" in refusal()
    wrong.write_bytes(content[:2] + np.random.default_rng(0).bytes(2000))
    assert "damaged or not a weight file" in refusal()
    wrong.write_bytes(b"<!DOCTYPE html>")
    assert "is not a weight file: use .safetensors, .npz" in refusal()
    foreign = Graph()
    foreign.dense("image", "fc", np.ones((2, 2), np.float32), np.ones(2, np.float32))
    foreign.save(wrong)
    assert "has 0 tensors called cls_token among its 2" in refusal()
    foreign.tensor("a.cls_token", np.ones((1, 1, DIM), np.float32))
    foreign.save(wrong)
    assert "33 missing: block_0/attn/proj/bias" in refusal()
    outside = {"save_as_external_data": True, "size_threshold": 0, "location": "numbers.bin"}
    foreign.save(wrong, **outside)
    assert "stores its numbers in another file" in refusal()


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    path = exported(tmp_path / "w.onnx", random_params(), 2)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="which is missing: pip install onnx$"):
        load_vit(path, random_params())
