"""Delivers batches of images to the compiled steps.

`make_loader` chooses between two loaders with the same methods. `DeviceLoader` holds all images on the device and sends
row numbers alone. `HostLoader` decodes and crops images on the host, a few batches ahead. A step reads both in one way:

    images, labels = loader.read(data, host_batch)
    if loader.crops_on_host:
        images = augment.normalize(images, options)
    else:
        images = augment.transform_train(images, key, options, size)
    images = erasing.erase(images, key, options)

`data` is `loader.data`, passed as an argument. `host_batch` comes from `train_batches` or `test_batches`. Rows may
select any part of a split. One loader serves a stream: each task passes its own rows, and all run the same program.
"""

import collections
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cdl_jax import config
from cdl_jax.data import stream
from cdl_jax.data.decoded_cache import DecodedCache
from cdl_jax.data.image_dataset import ImageDataset
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.options import defaults
from cdl_jax.runtime import sharding

OPTIONS = {
    "device_data_limit_mb": config.OPTIONS["device_data_limit_mb"],
    "num_workers": stream.OPTIONS["num_workers"],
    "cache_mb": stream.OPTIONS["cache_mb"],
}
PREFETCH = 2  # batches on their way to the device while one is in use

HostBatch = dict[str, jax.Array]


@dataclass(frozen=True, eq=False)
class DeviceLoader:
    """Holds all images on every device; a batch is a gather inside the step.

    data: {"images": uint8 `[n, height, width, 3]`, "labels": int32 `[n]`}, replicated over the mesh. If each seed has
      its own class order, labels are `[seeds, n]`, and `read` receives one row of them.
    """

    data: dict[str, jax.Array]
    mesh: Mesh
    crops_on_host: ClassVar[bool] = False
    canvases: ClassVar[tuple[tuple[int, int], ...]] = ()

    def train_batches(
        self, order: np.ndarray, start_step: int = 0, key_parts: tuple[int, ...] = ()
    ) -> Iterator[HostBatch]:
        """Yields {"rows": int32 `[batch, ...]`} for each step of an order.

        Args:
          order: int32 `[steps, batch, ...]`, rows of the split; -1 fills an incomplete batch.
          start_step: first step that is delivered.
          key_parts: unused; the compiled step draws by its own key.
        """
        order = order[start_step:]
        return prefetch(({"rows": rows} for rows in _local_columns(self.mesh, order)), self.mesh, order)

    def test_batches(self, rows: np.ndarray, weight: np.ndarray) -> Iterator[HostBatch]:
        """Yields the batches of `sequential_order`: {"rows", "weight": float32 `[batch]`}."""
        pairs = zip(_local_columns(self.mesh, rows), _local_columns(self.mesh, weight), strict=True)
        return prefetch(({"rows": r, "weight": w} for r, w in pairs), self.mesh, rows)

    def abstract_batch(self, batch_size: int, with_weight: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of a batch.

        with_weight: of a batch of `test_batches`, else of `train_batches`.
        """
        rows = _abstract_array(self.mesh, (batch_size,), np.int32)
        return {"rows": rows, **_abstract_weight(self.mesh, batch_size, with_weight)}

    def read(self, data: Mapping[str, jax.Array], host_batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns the images and labels of a batch, sharded as its rows; jittable.

        Args:
          data: `self.data`.
          host_batch: a batch of `train_batches` or `test_batches`.

        Returns:
          (images uint8 `[batch, height, width, 3]`, labels int32 `[batch]`).
        """
        return tuple(jnp.take(data[name], host_batch["rows"], axis=0, mode="clip") for name in ("images", "labels"))


@dataclass(frozen=True, eq=False)
class HostLoader:
    """Decodes, crops and flips images on the host.

    Each process prepares its own columns of a batch. `options["num_workers"]` processes decode files; 0: threads of
    this process. Images of an array are always prepared by threads, because each process would need a copy of the
    array. Processes start at every call (seconds), so an order should span many epochs: concatenate the orders of the
    epochs.

    Threads retain up to `options["cache_mb"]` MiB of decoded images for the next epochs.

    data: empty; the images come with each batch.
    size: side in pixels of the delivered images.
    """

    split: Split
    mesh: Mesh
    options: Mapping[str, Any]
    size: int
    data: dict[str, jax.Array] = field(default_factory=dict)
    crops_on_host: ClassVar[bool] = True
    canvases: ClassVar[tuple[tuple[int, int], ...]] = ()

    def train_batches(
        self, order: np.ndarray, start_step: int = 0, key_parts: tuple[int, ...] = ()
    ) -> Iterator[HostBatch]:
        """Yields a batch of images for each step of an order.

        A batch is {"images": uint8 `[batch, size, size, 3]`, "labels", "rows": int32 `[batch]`}.

        Crop and flip of an image depend on `key_parts` and on its position in `order`. So neither a restart nor another
        number of processes or workers changes them.

        Args:
          order: int32 `[steps, batch]`, rows of the split; -1 fills an incomplete batch.
          start_step: first step that is delivered.
          key_parts: non-negative counters, the seed first.

        Raises:
          UserError: an image cannot be decoded; raised at the batch that contains it.
        """
        return self._batches(order, start_step, key_parts or (0,))

    def test_batches(self, rows: np.ndarray, weight: np.ndarray) -> Iterator[HostBatch]:
        """Yields the batches of `sequential_order`, with "weight": float32 `[batch]`."""
        return self._batches(rows, 0, None, _local_columns(self.mesh, weight))

    def abstract_batch(self, batch_size: int, with_weight: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of a batch.

        with_weight: of a batch of `test_batches`, else of `train_batches`.
        """
        images = _abstract_array(self.mesh, (batch_size, self.size, self.size, 3), np.uint8)
        labels = _abstract_array(self.mesh, (batch_size,), np.int32)
        weight = _abstract_weight(self.mesh, batch_size, with_weight)
        return {"images": images, "labels": labels, "rows": labels, **weight}

    def read(self, data: Mapping[str, jax.Array], host_batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns the images and labels of a batch; jittable.

        Returns:
          (images uint8 `[batch, size, size, 3]`, labels int32 `[batch]`).
        """
        return host_batch["images"], host_batch["labels"]

    def check_image(self, row: int, part: str) -> None:
        """Prepares one image, to find a mistake before the first step.

        Args:
          row: of the split.
          part: "train" for the training transform, "test" for the test transform.

        Raises:
          UserError: the image cannot be read, or has a size that its transform refuses.
        """
        if self.split.images is None and self.split.files[row] == "":  # a placeholder of the published size
            return
        rows, key_parts = np.array([row]), (0,) if part == "train" else None
        ImageDataset(self.split, rows, np.zeros(1, int), key_parts, self.options, self.size)[0]

    @functools.cached_property
    def _cache(self):
        """Returns the cache of decoded files, or None.

        It is None if `cache_mb` is 0, for a split that is an array, and for processes, which share no memory.
        """
        limit = self.options["cache_mb"] * 2**20
        return DecodedCache(limit) if limit and self.split.images is None and not self.options["num_workers"] else None

    def _batches(self, order, start_step, key_parts, weights=None):
        import grain
        from absl import flags

        rows = _local_columns(self.mesh, order)
        if self._cache:
            self._cache.make_room(rows)
        positions = np.where(order < 0, -1, np.arange(order.size).reshape(order.shape))
        positions = _local_columns(self.mesh, positions)
        images = ImageDataset(
            split=self.split,
            rows=rows[start_step:].reshape(-1),
            positions=positions[start_step:].reshape(-1),
            key_parts=key_parts,
            options=self.options,
            size=self.size,
            load=self._cache and self._cache.load,
        )
        local_batch_size = rows.shape[1]
        images = grain.MapDataset.source(images)
        if self.options["num_workers"] and self.split.images is None:
            read_options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads flags; outside of absl's app.run none are parsed
            workers = grain.MultiprocessingOptions(
                num_workers=self.options["num_workers"], per_worker_buffer_size=PREFETCH
            )
            batches = images.batch(local_batch_size).to_iter_dataset(read_options).mp_prefetch(workers)
        else:
            read_options = grain.ReadOptions(
                num_threads=usable_cpus(), prefetch_buffer_size=PREFETCH * local_batch_size
            )
            batches = images.to_iter_dataset(read_options).batch(local_batch_size)
        return prefetch(_with_weights(iter(batches), weights), self.mesh, order[start_step:])


def make_loader(
    split: Split, mesh: Mesh, options: Mapping[str, Any], size: int, labels: np.ndarray | None = None
) -> DeviceLoader | HostLoader:
    """Returns the loader of a split.

    A split that is an array of at most `device_data_limit_mb` MiB has a `DeviceLoader`, any other a `HostLoader`.

    Args:
      split: labels int32 `[n]` with uint8 images `[n, height, width, 3]`, or without images and with files.
      mesh: batch sizes must be multiples of its `sharding.num_batch_shards`.
      options: overrides of `OPTIONS` and `augment.OPTIONS`.
      size: side in pixels of the images that a `HostLoader` delivers.
      labels: int32 `[seeds, n]` instead of the split's labels, for a `DeviceLoader`.
    """
    options = {**defaults(augment.OPTIONS), **defaults(OPTIONS), **options}
    if not fits_device(split, options["device_data_limit_mb"]):
        return HostLoader(split, mesh, options, size)
    replicated = sharding.replicated(mesh)
    labels = np.asarray(split.labels if labels is None else labels, np.int32)
    arrays = {"images": np.asarray(split.images, np.uint8), "labels": labels}
    data = {k: jax.make_array_from_process_local_data(replicated, v, v.shape) for k, v in arrays.items()}
    return DeviceLoader(data, mesh)


def fits_device(split: Split, limit_mb: int) -> bool:
    """Returns whether a split is an array of at most `limit_mb` MiB.

    A `DeviceLoader` holds such an array.
    """
    return split.images is not None and split.images.nbytes <= limit_mb * 2**20


def stack_batches(batches: Iterator[HostBatch], lengths: Sequence[int]) -> Iterator[HostBatch]:
    """Stacks consecutive batches, for a compiled step that scans over them.

    Args:
      batches: of `train_batches` or `test_batches`.
      lengths: number of batches in each result; their sum is the number of batches. Batches of one result have one
        size.

    Yields:
      The arrays with an axis of batches in front; a batch as it is where the length is 1.
    """
    try:
        for length in lengths:
            group = list(itertools.islice(batches, length))
            yield group[0] if length == 1 else jax.tree.map(_stack, *group)
    finally:
        batches.close()


def prefetch(local_batches: Iterator[dict[str, np.ndarray]], mesh: Mesh, order: np.ndarray) -> Iterator[HostBatch]:
    """Yields global device arrays; transfers start `PREFETCH` batches ahead.

    Args:
      local_batches: this process's columns of each batch, a generator.
      mesh: devices over which a batch is split.
      order: int `[steps, batch, ...]` of all processes. Incomplete batches are cut to their number of images.
    """
    queue, batch_sizes = collections.deque(), _batch_sizes(order)
    local_sizes = {size: np.diff(local_bounds(mesh, size)).item() for size in set(batch_sizes)}
    batch_sharding = sharding.batch_sharding(mesh)
    try:
        for size in batch_sizes:
            device_batch = {}
            for name, values in next(local_batches).items():
                # np.array copies: a worker's arrays are in shared memory, which a device array on a CPU would keep.
                local = np.array(values[: local_sizes[size]])
                shape = (size, *values.shape[1:])
                device_batch[name] = jax.make_array_from_process_local_data(batch_sharding, local, shape)
            queue.append(device_batch)
            if len(queue) > PREFETCH:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
    finally:
        local_batches.close()


def local_bounds(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """Returns the first column and the end of this process's part of a batch.

    Raises:
      UserError: the batch cannot be divided over the devices of the mesh.
    """
    if batch_size % (count := sharding.num_batch_shards(mesh)):
        raise UserError(
            f"batch_size={batch_size}: does not divide among the {count} devices of the mesh; set it to a multiple"
        )
    shards = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    bounds = [shard[0].indices(batch_size)[:2] for shard in shards]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use.

    Under a scheduler, the machine may have more.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stack(*arrays):
    return _stack_function(sharding.batch_sharding(arrays[0].sharding.mesh, stacked=True))(*arrays)


@functools.cache
def _stack_function(out_sharding):
    return jax.jit(lambda *arrays: jnp.stack(arrays), out_shardings=out_sharding)


def _local_columns(mesh, order):
    """Returns this process's columns of `[steps, batch, ...]`.

    Its devices hold these columns of each batch. The columns of an incomplete batch come first, with -1 behind them.
    """
    low, high = local_bounds(mesh, order.shape[1])
    local = order[:, low:high].copy()
    batch_sizes = _batch_sizes(order)
    for size in set(batch_sizes) - {order.shape[1]}:
        incomplete = np.equal(batch_sizes, size)
        low, high = local_bounds(mesh, size)
        local[incomplete] = -1
        local[incomplete, : high - low] = order[incomplete, low:high]
    return local


def _batch_sizes(order) -> list[int]:
    """Returns the number of images in each batch of `[steps, batch, ...]`.

    Axes of learners and seeds may come last.
    """
    first = order[(..., *(0,) * (order.ndim - 2))]
    return (first >= 0).sum(axis=1).tolist()


def _abstract_array(mesh, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh))


def _abstract_weight(mesh, batch_size, with_weight):
    return {"weight": _abstract_array(mesh, (batch_size,), np.float32)} if with_weight else {}


def _with_weights(batches, weights):
    try:
        for step, batch in enumerate(batches):
            yield batch if weights is None else {**batch, "weight": weights[step]}
    finally:
        batches.close()  # ends worker processes at once, even if the consumer stopped half-way
