"""A detector's matches, losses and gradients are equal on any number of devices."""

import subprocess
import sys

import numpy as np

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ml_collections import ConfigDict
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.distill.detection import projected_tokens
from cdl_jax.methods.shared import detection_losses
from cdl_jax.options import defaults

rng = np.random.default_rng(0)
draw = lambda *shape: np.float32(rng.normal(0, 1, shape))
sizes, images, levels, queries = [(4, 3), (2, 2), (1, 1), (1, 1)], 8, 3, 6
student, teacher = (
    {"patch_maps": tuple(draw(images, *size, 8) for size in sizes), "body_tokens": draw(images, queries, 8),
     "neck_tokens": draw(levels, images, queries, 8)} for _ in range(2)
)
boxes = lambda *shape: np.float32(rng.uniform(0.2, 0.8, (*shape, 4)))
outputs = {"logits": draw(levels, images, queries, 5), "boxes": boxes(levels, images, queries)}
labels, valid = np.int32(rng.integers(0, 5, (images, 3))), rng.random((images, 3)) < 0.6
targets = {"boxes": boxes(images, 3), "labels": labels, "valid": valid}
inside = tuple(np.ones((images, *size), bool) for size in sizes)
groups = 4
scheme = projected_tokens.build(
    ConfigDict(defaults(projected_tokens.OPTIONS, projector="cayley")), *[NetworkSpec(8, 0, 0, 0, 1, None, None)] * 2
)
variables = scheme.init(jax.random.key(0))
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
of_images, of_levels = NamedSharding(mesh, P("data")), NamedSharding(mesh, P(None, "data"))

def place(tree):
    def put(path, x):
        return jax.device_put(x, of_levels if path[0].key in ("neck_tokens", "logits", "boxes") else of_images)
    return jax.tree_util.tree_map_with_path(put, tree)

student, teacher, outputs = place(student), place(teacher), place(outputs)
targets, inside = jax.device_put((targets, inside), of_images)

options = ConfigDict(defaults(detection_losses.OPTIONS, solver=sys.argv[3]))

# Two programs: one with SciPy's callback is in no cache of compiled programs.
def set_loss(outputs, targets):
    matches = detection_losses.match_queries(options, outputs, targets)
    loss = lambda outputs: detection_losses.detection_loss(options, outputs, targets, groups)
    return matches, jax.value_and_grad(loss, has_aux=True)(outputs)

def distillation(student, teacher, inside):
    grouped = tuple(x.reshape(groups, -1, *x.shape[1:]) for x in inside)
    loss = lambda student: scheme.loss(variables, {**student, "inside": grouped}, teacher, None, None)
    return jax.value_and_grad(loss, has_aux=True)(student)

with jax.set_mesh(mesh):
    result = jax.jit(set_loss)(outputs, targets), jax.jit(distillation)(student, teacher, inside)
matches = result[0][0]
assert len(matches.sharding.device_set) == jax.device_count()
assert matches.addressable_shards[0].data.shape[1] == images // jax.device_count(), matches.sharding
np.savez(sys.argv[2], *map(np.asarray, jax.tree.leaves(result)))
"""


def test_one_and_four_devices_give_the_same_losses_and_gradients(tmp_path):
    cases = [("1", "host"), ("4", "host"), ("4", "device")]
    paths = [tmp_path / f"{devices}_{solver}.npz" for devices, solver in cases]
    runs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, devices, str(path), solver])
        for (devices, solver), path in zip(cases, paths, strict=True)
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0, 0]
    one, *others = (np.load(path) for path in paths)
    assert len(one.files) > 20
    for other in others:
        for name in one.files:
            np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-6)
