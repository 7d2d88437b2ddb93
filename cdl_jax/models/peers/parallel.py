"""Runs peers of one architecture one after the other, or spread over devices.

Peers are looped over, because a convolution under `vmap` with one kernel per peer is many times slower. On a mesh with
an axis "peer" each device along that axis loops over its own slice of the peers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS = "peer"


def stack(trees: Sequence[Any]) -> Any:
    """Stacks trees of one structure along a new first axis of each leaf.

    Args:
      trees: pytrees of arrays with equal structures and shapes.

    Returns:
      One pytree; each leaf has the shape `[len(trees), ...]`.

    Example:
      >>> stack([{"a": jnp.ones(2)}, {"a": jnp.zeros(2)}])["a"].tolist()
      [[1.0, 1.0], [0.0, 0.0]]
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def unstack(tree: Any, count: int) -> list[Any]:
    """Splits each leaf of a tree along its first axis; the inverse of `stack`.

    Args:
      tree: pytree of arrays `[count, ...]`.
      count: length of the first axis.

    Returns:
      `count` pytrees, whose leaves lack the first axis.

    Example:
      >>> [part["a"].tolist() for part in unstack({"a": jnp.eye(2)}, 2)]
      [[1.0, 0.0], [0.0, 1.0]]
    """
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(count)]


def map_peers(function: Callable[..., Any], peers: Sequence[Any], *replicated: Any) -> list[Any]:
    """Applies a function to each peer, in a loop or spread over devices.

    A mesh with an axis "peer" spreads the peers over the devices along that axis.

    Args:
      function: `function(peer, *replicated) -> result`; results are pytrees of arrays with one structure.
      peers: one pytree of arrays for each peer, of equal structures and shapes. Their number is a multiple of the
        number of devices along the axis.
      *replicated: pytrees that all peers share.

    Returns:
      The result of each peer, in the order of `peers`, on all devices.

    Example:
      >>> map_peers(lambda peer, shared: peer + shared, [1, 2], 10)
      [11, 12]
    """
    num_devices = jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)
    if num_devices == 1 or len(peers) == 1:
        return [function(peer, *replicated) for peer in peers]
    per_device = len(peers) // num_devices

    def run_slice(stacked, replicated):
        return stack([function(peer, *replicated) for peer in unstack(stacked, per_device)])

    along_peers = PartitionSpec(AXIS)
    run = jax.shard_map(run_slice, in_specs=(along_peers, PartitionSpec()), out_specs=along_peers, axis_names={AXIS})
    return unstack(run(stack(peers), replicated), len(peers))
