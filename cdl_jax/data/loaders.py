"""Order and delivery of batches: which pictures form each batch, and how they reach the compiled step.

`make_loader` chooses between two loaders with the same methods. `DeviceLoader` keeps all images on the device and sends
row numbers alone; `HostLoader` decodes and crops images on the host, a few batches ahead. A step reads both in one way:

    images, labels = source.read(data, item)
    if source.crops_on_host:
        images = augment.normalize(images, options)
    else:
        images = augment.transform_train(images, key, options, size)
    images = erasing.erase(images, key, options)

where `data` is `source.data`, passed as an argument, and `item` comes from `train_batches` or `test_batches`. Rows may
select any part of a split: place the pictures of a whole stream once and give each task's rows, and every task runs the
same program.
"""

import collections
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cdl_jax.data.image_dataset import ImageDataset
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.runtime import sharding

OPTIONS: dict[str, Any] = {
    "resident_limit_mb": 4096,  # arrays up to this size (2**20 bytes) live on the device
    "workers": 0,  # processes that decode picture files; 0: threads of this process
}
PREFETCH = 2  # batches on their way to the device while one is in use


@dataclass(frozen=True, eq=False)
class DeviceLoader:
    """All pictures on every device; a batch is a gather inside the step.

    data: {"images": uint8 `[n, height, width, 3]`, "labels": int32 `[n]`}, replicated over the mesh; where seeds number
      the classes in orders of their own the labels are `[seeds, n]`, and `read` is given one row of them.
    """

    data: dict[str, jax.Array]
    mesh: Mesh
    crops_on_host: ClassVar[bool] = False

    def train_batches(
        self, order: np.ndarray, start_step: int = 0, key_parts: tuple[int, ...] = (), lengths: Sequence[int] = ()
    ) -> Iterator[dict]:
        """{"rows"} for each row of `order` from `start_step` on; `key_parts` is not used, the step draws by its key.

        lengths: how many batches each item brings, of which those with more than one have an axis of batches in front;
          none: one each.
        """
        order = order[start_step:]
        return prefetch(({"rows": rows} for rows in _local(self.mesh, order)), self.mesh, order, lengths)

    def test_batches(self, rows: np.ndarray, weight: np.ndarray, lengths: Sequence[int] = ()) -> Iterator[dict]:
        """{"rows", "weight"} for each batch of `sequential_order`; `lengths` as in the other."""
        pairs = zip(_local(self.mesh, rows), _local(self.mesh, weight), strict=True)
        return prefetch(({"rows": r, "weight": w} for r, w in pairs), self.mesh, rows, lengths)

    def abstract_batch(self, batch_size: int, test: bool = False) -> dict:
        """Shapes, types and shardings of an item of `train_batches`, or of `test_batches`."""
        return {"rows": _abstract(self.mesh, (batch_size,), np.int32), **_weight(self.mesh, batch_size, test)}

    def read(self, data: Mapping[str, jax.Array], item: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(images uint8 `[batch, height, width, 3]`, labels int32 `[batch]`), sharded as the rows are; traced."""
        return tuple(jnp.take(data[name], item["rows"], axis=0, mode="clip") for name in ("images", "labels"))


@dataclass(frozen=True, eq=False)
class HostLoader:
    """Pictures decoded, cropped and flipped on the host, in the order asked for, each process only its own slice.

    Files are decoded by `options["workers"]` processes, or by threads of this process if that is 0; pictures of an
    array always by threads, for each process would need a copy of the array. Processes start with every call (seconds),
    so an order may well span several epochs: the epochs' orders, concatenated.
    """

    split: Split
    mesh: Mesh
    options: Mapping[str, Any]
    size: int
    data: dict[str, jax.Array] = field(default_factory=dict)
    crops_on_host: ClassVar[bool] = True

    def train_batches(
        self, order: np.ndarray, start_step: int = 0, key_parts: tuple[int, ...] = (), lengths: Sequence[int] = ()
    ) -> Iterator[dict]:
        """{"images": uint8 `[batch, size, size, 3]`, "labels", "rows": int32 `[batch]`} for rows of `order`.

        Crop and flip of a picture depend on `key_parts` (non-negative counters, the seed first) and on its place in
        `order`, so neither a restart nor another number of processes or workers changes them.

        lengths: as of `DeviceLoader`.

        Raises:
          UserError: a picture cannot be decoded, from the batch that holds it.
        """
        return self._batches(order, start_step, key_parts or (0,), lengths=lengths)

    def test_batches(self, rows: np.ndarray, weight: np.ndarray, lengths: Sequence[int] = ()) -> Iterator[dict]:
        """{"images", "labels", "rows", "weight"} for each batch of `sequential_order`; else as the other."""
        return self._batches(rows, 0, None, _local(self.mesh, weight), lengths)

    def abstract_batch(self, batch_size: int, test: bool = False) -> dict:
        """Shapes, types and shardings of an item of `train_batches`, or of `test_batches`."""
        images = _abstract(self.mesh, (batch_size, self.size, self.size, 3), np.uint8)
        labels = _abstract(self.mesh, (batch_size,), np.int32)
        return {"images": images, "labels": labels, "rows": labels, **_weight(self.mesh, batch_size, test)}

    def read(self, data: Mapping[str, jax.Array], item: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """(images uint8 `[batch, size, size, 3]`, labels int32 `[batch]`); traced."""
        return item["images"], item["labels"]

    def check_image(self, row: int, part: str) -> None:
        """Prepares one picture as in training ("train") or as in evaluation ("test").

        Raises:
          UserError: it cannot be read, or has another size than its transform needs.
        """
        if self.split.images is None and self.split.files[row] == "":  # planned by published sizes, without the data
            return
        rows, key_parts = np.array([row]), (0,) if part == "train" else None
        ImageDataset(self.split, rows, np.zeros(1, int), key_parts, self.options, self.size)[0]

    def _batches(self, order, start_step, key_parts, weights=None, lengths=()):
        import grain
        from absl import flags

        rows = _local(self.mesh, order)
        places = _local(self.mesh, np.where(order < 0, -1, np.arange(order.size).reshape(order.shape)))
        pictures = ImageDataset(
            split=self.split,
            rows=rows[start_step:].reshape(-1),
            places=places[start_step:].reshape(-1),
            key_parts=key_parts,
            options=self.options,
            size=self.size,
        )
        share = rows.shape[1]
        pictures = grain.MapDataset.source(pictures)
        if self.options["workers"] and self.split.images is None:
            reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads flags; outside of absl's app.run none are parsed
            working = grain.MultiprocessingOptions(num_workers=self.options["workers"], per_worker_buffer_size=PREFETCH)
            batches = pictures.batch(share).to_iter_dataset(reading).mp_prefetch(working)
        else:
            reading = grain.ReadOptions(num_threads=usable_cpus(), prefetch_buffer_size=PREFETCH * share)
            batches = pictures.to_iter_dataset(reading).batch(share)
        return prefetch(_with_weights(iter(batches), weights), self.mesh, order[start_step:], lengths)


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use, which under a scheduler is less than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_loader(
    split: Split, mesh: Mesh, options: Mapping[str, Any], size: int, labels: np.ndarray | None = None
) -> DeviceLoader | HostLoader:
    """Returns a `DeviceLoader` for an array of at most `resident_limit_mb`, else a `HostLoader`.

    Args:
      split: labels int32 `[n]` with uint8 images `[n, height, width, 3]`, or None and files.
      mesh: batch sizes must be multiples of its `shares`.
      options: overrides of `OPTIONS` and `augment.OPTIONS`.
      size: side in pixels of the pictures that a streamed source delivers.
      labels: int32 `[seeds, n]` in place of the split's, for a resident source.
    """
    options = {**augment.OPTIONS, **OPTIONS, **options}
    if split.images is None or split.images.nbytes > options["resident_limit_mb"] * 2**20:
        return HostLoader(split, mesh, options, size)
    everywhere = sharding.replicated(mesh)
    labels = np.asarray(split.labels if labels is None else labels, np.int32)
    arrays = {"images": np.asarray(split.images, np.uint8), "labels": labels}
    data = {k: jax.make_array_from_process_local_data(everywhere, v, v.shape) for k, v in arrays.items()}
    return DeviceLoader(data, mesh)


def _local(mesh, order):
    """This process's columns of `[steps, batch]`, those that its devices hold of a batch.

    What it holds of an incomplete batch, too, comes first and -1 behind it.
    """
    low, high = _share(mesh, order.shape[1])
    local = order[:, low:high].copy()
    sizes = _sizes(order)
    for size in set(sizes) - {order.shape[1]}:
        incomplete = np.equal(sizes, size)
        low, high = _share(mesh, size)
        local[incomplete] = -1
        local[incomplete, : high - low] = order[incomplete, low:high]
    return local


def _sizes(order):
    """How many pictures each batch of `[steps, batch, ...]` has, a list; axes of learners and seeds may come last."""
    of_one = order[(..., *(0,) * (order.ndim - 2))]
    return (of_one >= 0).sum(axis=1).tolist()


def _share(mesh, batch):
    """First column and end of what this process's devices hold of a batch."""
    if batch % (count := sharding.num_batch_shards(mesh)):
        raise UserError(
            f"batch_size={batch}: does not divide among the {count} devices of the mesh; set it to a multiple"
        )
    shards = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch,)).values()
    bounds = [shard[0].indices(batch)[:2] for shard in shards]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _abstract(mesh, shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(mesh))


def _weight(mesh, batch_size, test):
    return {"weight": _abstract(mesh, (batch_size,), np.float32)} if test else {}


def _with_weights(batches, weights):
    try:
        for step, batch in enumerate(batches):
            yield batch if weights is None else {**batch, "weight": weights[step]}
    finally:
        batches.close()  # ends worker processes at once, even where the consumer stopped half-way


def prefetch(batches, mesh, order, lengths=()):
    """Global device arrays of this process's `batches`, with transfers started a few items before they are needed.

    order: `[steps, batch]` of all processes; incomplete batches are cut to the pictures that they have.
    lengths: see `DeviceLoader.train_batches`; batches of one item are of one size.
    """
    queue, sizes = collections.deque(), _sizes(order)
    own = {size: np.diff(_share(mesh, size)).item() for size in set(sizes)}
    # np.array copies: what comes from a worker lies in shared memory, which a device array on a CPU would keep hold of.
    try:
        ends = itertools.accumulate(lengths or [1] * len(sizes))
        for length, end in zip(lengths or [1] * len(sizes), ends, strict=True):
            together, (size,) = list(itertools.islice(batches, length)), set(sizes[end - length : end])
            item, axes = {}, (length,) * (length > 1)
            for name, a in together[0].items():
                local = np.array([batch[name][: own[size]] for batch in together]) if axes else np.array(a[: own[size]])
                shape = (*axes, size, *a.shape[1:])
                split = sharding.batch_sharding(mesh, stacked=bool(axes))
                item[name] = jax.make_array_from_process_local_data(split, local, shape)
            queue.append(item)
            if len(queue) > PREFETCH:
                yield queue.popleft()
        while queue:
            yield queue.popleft()
    finally:
        batches.close()
