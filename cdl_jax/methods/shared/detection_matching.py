"""Matches target boxes one to one with the queries of a detector.

The total cost of a match is minimal. Each prediction level and each image is a problem of its own (DETR, arXiv
2005.12872). All problems of a step are solved in one call on the host, or on the device.

Arrays have the axes levels, images, queries, targets: `[L, N, Q, n]`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict
from scipy.optimize import linear_sum_assignment

from cdl_jax.errors import UserError
from cdl_jax.methods.shared.detection_boxes import overlaps
from cdl_jax.options import Option
from cdl_jax.runtime.sharding import BATCH_AXES

OPTIONS = {
    "class_cost": Option(2.0, "factor of the class cost in the matching"),
    "box_cost": Option(5.0, "factor of the L1 distance of boxes in the matching"),
    "giou_cost": Option(2.0, "factor of the generalized IoU in the matching"),
    # A step with a callback is not in the cache of compiled programs. On a CPU optax is 30 times slower: 8 ms instead
    # of 0.3 ms for 14 problems of 100 queries and 20 objects.
    "solver": Option(
        "host", "of the matching: host, SciPy in one callback a step, or device, optax", choices=("host", "device")
    ),
}

# Constants of the matcher in the authors' code. The exponent and the weight of the loss are options of their own.
_ALPHA, _GAMMA, _EPSILON = 0.25, 2, 1e-8

# A cost that is NaN or infinite counts as this. The loss of such predictions is NaN, which the training step detects.
_LARGEST_COST = 1e6


def check(options: ConfigDict, section: str) -> None:
    """Checks that the options fit together and that the solver can run.

    Args:
      options: a section with the keys of `OPTIONS`.
      section: its name, for the message.

    Raises:
      UserError: all costs are 0, or the solver cannot run.
    """
    if not (options.class_cost or options.box_cost or options.giou_cost):
        raise UserError(
            f"{section}: class_cost, box_cost and giou_cost are 0, so every match is equally good; raise one of them"
        )
    if options.solver == "host":
        _check_cpu_backend(f"{section}.solver")


def _check_cpu_backend(key):
    """Refuses the host's solver where jax has no CPU backend.

    A callback copies its arguments to the CPU backend.
    """
    try:
        jax.local_devices(backend="cpu")
    except RuntimeError:
        raise UserError(
            f"{key}='host' needs jax's CPU backend beside the accelerator's: add it to JAX_PLATFORMS, such as "
            f"JAX_PLATFORMS=cuda,cpu, or set {key}='device'"
        ) from None


def focal_class_costs(logits: jax.Array) -> jax.Array:
    """Computes the cost of each class for classes that are independent.

    The cost is the focal loss of a hit minus that of a miss.

    Args:
      logits: `[..., classes]`.

    Returns:
      `[..., classes]`.
    """
    p = jax.nn.sigmoid(logits)
    hit = _ALPHA * (1 - p) ** _GAMMA * -jnp.log(p + _EPSILON)
    miss = (1 - _ALPHA) * p**_GAMMA * -jnp.log(1 - p + _EPSILON)
    return hit - miss


def softmax_class_costs(logits: jax.Array) -> jax.Array:
    """Computes the cost of each class for classes that exclude each other.

    The cost is minus the probability of the class.
    """
    return -jax.nn.softmax(logits)


def pair_costs(
    options: ConfigDict, class_costs: jax.Array, boxes: jax.Array, target_boxes: jax.Array, labels: jax.Array
) -> jax.Array:
    """Computes the cost of each query with each target, without gradient.

    The cost is `class_cost C + box_cost L1 - giou_cost GIoU`.

    Args:
      options: a section with the keys of `OPTIONS`.
      class_costs: `[L, N, Q, classes]`.
      boxes: `[L, N, Q, 4]`, predictions.
      target_boxes: `[N, n, 4]`.
      labels: int32 `[N, n]`.

    Returns:
      `[L, N, Q, n]`.
    """
    class_costs, boxes = jax.lax.stop_gradient((class_costs, boxes))
    queries, targets = boxes[..., :, None, :], target_boxes[:, None]
    classes = jnp.take_along_axis(class_costs, labels[None, :, None], axis=-1)
    distances = jnp.abs(queries - targets).sum(axis=-1)
    _, giou = overlaps(queries, targets)
    return options.class_cost * classes + options.box_cost * distances - options.giou_cost * giou


def match(costs: jax.Array, valid: jax.Array, solver: str = "host") -> jax.Array:
    """Returns the query of each target, the assignment of the smallest sum of costs.

    An image with more targets than queries leaves targets without a query. A mesh with axes of the batch splits the
    images over its devices; each process then solves the problems of its own images.

    >>> costs = jnp.array([[[[1.0, 5.0], [0.0, 1.0], [9.0, 9.0]]]])  # 3 queries, 2 targets
    >>> match(costs, jnp.array([[True, True]])).tolist(), match(costs, jnp.array([[True, False]])).tolist()
    ([[[0, 1]]], [[[1, -1]]])

    Args:
      costs: `[L, N, Q, n]`.
      valid: bool `[N, n]`, False for padding.
      solver: "host" (SciPy) or "device" (optax). Both find the smallest sum; they may differ between equal sums.

    Returns:
      int32 `[L, N, n]`, -1 for targets without a query.
    """
    solve, mesh = _SOLVERS[solver], jax.sharding.get_abstract_mesh()
    costs = jnp.where(jnp.isfinite(costs), costs, _LARGEST_COST)
    valid = jnp.broadcast_to(valid, (costs.shape[0], *valid.shape))
    if mesh.size > 1:
        along_images = PartitionSpec(None, tuple(axis for axis in mesh.axis_names if axis in BATCH_AXES))
        solve = jax.shard_map(solve, in_specs=(along_images,) * 2, out_specs=along_images, check_vma=False)
    return solve(costs, valid)


def _match_on_host(costs, valid):
    shape = jax.ShapeDtypeStruct(valid.shape, jnp.int32)
    return jax.pure_callback(_solve_with_scipy, shape, costs, valid, vmap_method="broadcast_all")


def _solve_with_scipy(costs, valid):
    # A jax function in a callback can block for ever.
    costs, valid = np.asarray(costs), np.asarray(valid)
    queries = np.full(valid.shape, -1, np.int32)
    for problem in np.ndindex(valid.shape[:-1]):
        (targets,) = valid[problem].nonzero()
        rows, columns = linear_sum_assignment(costs[problem][:, targets])
        queries[problem][targets[columns]] = rows
    return queries


def _match_on_device(costs, valid):
    def solve(problem):
        costs, valid = problem
        # Padding costs more than any target, so it takes no query from a target. Equal costs change no other choice.
        padding = costs.max(where=valid, initial=0.0) + 1
        rows, columns = optax.assignment.hungarian_algorithm(jnp.where(valid, costs, padding))
        queries = jnp.full(valid.shape, -1, jnp.int32).at[columns].set(rows.astype(jnp.int32))
        return jnp.where(valid, queries, -1)

    problems = costs.reshape(-1, *costs.shape[2:]), valid.reshape(-1, valid.shape[-1])
    # Not vmap, which runs every loop as long as the slowest problem.
    return jax.lax.map(solve, problems).reshape(valid.shape)


_SOLVERS = {"host": _match_on_host, "device": _match_on_device}
