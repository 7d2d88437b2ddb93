"""Delivers batches of images with boxes, of static shapes, to the compiled steps.

Threads decode and transform the images.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from cdl_jax.data import loaders
from cdl_jax.data.detection import canvases, segmentations, transforms
from cdl_jax.data.detection.coco_files import DetectionSet, Targets, check_size
from cdl_jax.data.detection.transforms import Size
from cdl_jax.data.image_dataset import load_file
from cdl_jax.data.loaders import HostBatch
from cdl_jax.errors import UserError
from cdl_jax.options import check, defaults
from cdl_jax.runtime import sharding

INVALID_BOX = (0.5, 0.5, 1.0, 1.0)  # (center x, center y, width, height); has an area, so that no loss is NaN


class Sample(NamedTuple):
    """One image after its transform.

    pixels: uint8 `[height, width, 3]`.
    targets: its boxes are (center x, center y, width, height) relative to the image.
    label_map: uint8 or uint16 `[height, width]`, see `segmentations.label_map`; None: not drawn.
    """

    pixels: np.ndarray
    targets: Targets
    label_map: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class DetectionLoader:
    """Delivers batches of images with targets, padded to static shapes.

    Images are padded to a canvas, and targets to one number of objects. A batch of N images is a dict:

        images          uint8   [N, Hc, Wc, 3]    each image at the top left of the canvas, zeros around it
        sizes           int32   [N, 2]            (height, width) of the image after its transform
        extents         int32   [N, 2]            largest height and width within the group of the image
        boxes           float32 [N, n_max, 4]     (center x, center y, width, height), relative to the image
        labels          int32   [N, n_max]        category ids; 0 where invalid
        valid           bool    [N, n_max]        False for padding
        original_sizes  int32   [N, 2]            (height, width) of the file
        rows            int32   [N]               row of the set; -1: no image
        weight          float32 [N]               test batches only: 1 for an image that counts, else 0
        label_maps      uint8   [N, Hc, Wc]       with `label_maps` only: the label of the first object that covers a
                                                  pixel, else 0; uint16 for category ids above 255

    `transforms.normalize(images, sizes, options)` gives the input of a network. N is `groups * group_size`.

    data: the images.
    mesh: devices over which a batch is split.
    group_size: images in a group.
    options: of `transforms.OPTIONS` and `canvases.OPTIONS`.
    canvases: (height, width) each.
    n_max: length of the axis of objects, at least `data.max_objects`. It may exceed the number of queries. Loaders of
      the tasks of one stream share the largest, so that one program serves all tasks.
    label_maps: whether training batches have label maps.
    """

    data: DetectionSet
    mesh: Mesh
    group_size: int
    options: Mapping[str, Any]
    canvases: tuple[Size, ...]
    n_max: int
    label_maps: bool = False

    @classmethod
    def build(
        cls,
        data: DetectionSet,
        mesh: Mesh,
        options: Mapping[str, Any],
        *,
        group_size: int,
        training: bool,
        n_max: int = 0,
        label_maps: bool = False,
    ) -> "DetectionLoader":
        """Builds the loader of a set, after checks of the options.

        Args:
          data: the images.
          mesh: devices over which a batch is split.
          options: overrides of `transforms.OPTIONS` and `canvases.OPTIONS`.
          group_size: images in a group.
          training: whether the loader serves `train_batches`; False: `test_batches`.
          n_max: length of the axis of objects; 0: `data.max_objects`.
          label_maps: whether batches have label maps, for training alone; default False.

        Raises:
          UserError: an option is out of range, no canvas holds the images, an image has more objects than `n_max`, or
            label maps cannot be drawn.
        """
        declared = {**transforms.OPTIONS, **canvases.OPTIONS}
        check(declared, options, "augment")
        options = defaults(declared, **options)
        transforms.check(options)
        if n_max and data.max_objects > n_max:
            raise UserError(f"{data.name}: an image has {data.max_objects} objects, but n_max is {n_max}: raise it")
        if label_maps:
            _check_label_maps(data)
        sizes = canvases.canvases_for(data, options, training=training)
        return cls(data, mesh, group_size, options, tuple(sizes), n_max or data.max_objects, label_maps)

    def train_batches(
        self, rows: np.ndarray, purposes: np.ndarray, seed: int, start_step: int = 0
    ) -> Iterator[HostBatch]:
        """Yields one training batch for each step, with arrays on the devices.

        The transform of an image is a function of seed, purpose and row. So neither a restart nor another number of
        processes, devices or threads changes it.

        Args:
          rows: int32 `[steps, batch]`, of `canvases.epoch_rows`.
          purposes: int `[steps, k]`, non-negative counters of each step, such as (task, epoch).
          seed: of the run.
          start_step: first step that is delivered.

        Raises:
          UserError: an image cannot be decoded, or has another size than its annotations; raised at its batch.
        """
        rows, purposes = rows[start_step:], purposes[start_step:]
        columns = slice(*loaders.local_bounds(self.mesh, rows.shape[1]))
        return loaders.prefetch(self.host_train_batches(rows, purposes, seed, columns), self.mesh, np.zeros_like(rows))

    def test_batches(self, rows: np.ndarray, weight: np.ndarray) -> Iterator[HostBatch]:
        """Yields the batches of `canvases.evaluation_rows`, with arrays on the devices.

        Raises:
          UserError: as in `train_batches`.
        """
        columns = slice(*loaders.local_bounds(self.mesh, rows.shape[1]))
        return loaders.prefetch(self.host_test_batches(rows, weight, columns), self.mesh, np.zeros_like(rows))

    def host_train_batches(
        self, rows: np.ndarray, purposes: np.ndarray, seed: int, columns: slice = slice(None)
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields training batches as NumPy arrays.

        Args:
          rows, purposes, seed: as in `train_batches`.
          columns: the part of each batch to decode. Extents and canvases are always those of the complete batch.
        """
        keys = [(seed, tuple(purpose)) for purpose in np.asarray(purposes).tolist()]
        return self._batches(rows, keys, columns, None)

    def host_test_batches(
        self, rows: np.ndarray, weight: np.ndarray, columns: slice = slice(None)
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields test batches as NumPy arrays; `columns` as in `host_train_batches`."""
        return self._batches(rows, None, columns, weight)

    def _batches(self, rows, keys, columns, weight):
        import grain

        local = rows[:, columns]
        items = _Images(self, local, keys)
        read_options = grain.ReadOptions(
            num_threads=loaders.usable_cpus(), prefetch_buffer_size=loaders.PREFETCH * local.shape[1]
        )
        images = iter(grain.MapDataset.source(items).to_iter_dataset(read_options))
        try:
            for step, step_rows in enumerate(rows):
                sizes, extents, canvas = self.plan(step_rows, keys[step] if keys else None)
                batch = self._assemble(itertools.islice(images, local.shape[1]), local.shape[1], canvas)
                batch |= {"sizes": sizes[columns], "extents": extents[columns], "rows": local[step]}
                batch["original_sizes"] = np.where(local[step][:, None] < 0, 1, self.data.sizes[local[step]])
                yield batch if weight is None else {**batch, "weight": weight[step, columns]}
        finally:
            images.close()

    def plan(
        self, rows: np.ndarray, key: tuple[int, tuple[int, ...]] | None
    ) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Computes the sizes of a batch without decoding an image.

        Args:
          rows: int `[batch]`; -1 is no image, and receives the extent of its group as its size.
          key: (seed, purpose) of the training transform; None: evaluation.

        Returns:
          (sizes int32 `[batch, 2]`, extents int32 `[batch, 2]`, canvas), all (height, width).
        """
        sizes = np.array([self._size(row, key) if row >= 0 else (0, 0) for row in rows.tolist()], np.int32)
        extents = canvases.group_extents(sizes, self.group_size)
        canvas = canvases.choose_canvas(extents, self.canvases)
        extents = np.where(extents == 0, np.array(canvas, np.int32), extents)
        return np.where(sizes == 0, extents, sizes), extents, canvas

    def draws(self, row: int, key: tuple[int, tuple[int, ...]]) -> transforms.Draws:
        """Returns the choices for a training image; `key` is (seed, purpose)."""
        return canvases.draw(*key, row, tuple(self.data.sizes[row].tolist()), self.options)

    def load(self, row: int, key: tuple[int, tuple[int, ...]] | None) -> "Sample":
        """Decodes and transforms one image.

        Args:
          row: of the set.
          key: (seed, purpose) of the training transform; None: evaluation.

        Raises:
          UserError: the image cannot be decoded, or has another size than its annotations.
        """
        image = load_file(self.data.files[row])
        check_size(self.data, row, image.size[::-1])
        targets, label_map = self.data.targets(row), None
        if key is None:
            image, targets = transforms.transform_test(image, targets, self.options)
        else:
            draws = self.draws(row, key)
            image, targets = transforms.transform_train(image, targets, draws, self.options)
            if self.label_maps:
                label_map = transforms.transform_label_map(self._label_map(row, targets), draws, self.options)
        boxes = transforms.relative_boxes(targets.boxes, image.size[::-1])
        return Sample(np.asarray(image), replace(targets, boxes=boxes), label_map)

    def _label_map(self, row, targets):
        """Returns the label map of an image before its transform.

        It has the objects that the transform keeps.
        """
        size = tuple(self.data.sizes[row].tolist())
        masks = (segmentations.decode(runs, size) for runs in targets.masks)
        return segmentations.label_map(masks, targets.labels, size, self._label_type)

    @property
    def _label_type(self):
        return np.min_scalar_type(self.data.num_outputs - 1)

    def arrays(self, count: int, canvas: Size) -> dict[str, np.ndarray]:
        """Returns images and targets of `count` empty images on a canvas."""
        maps = {"label_maps": np.zeros((count, *canvas), self._label_type)} if self.label_maps else {}
        return {
            **maps,
            "images": np.zeros((count, *canvas, 3), np.uint8),
            "boxes": np.tile(np.float32(INVALID_BOX), (count, self.n_max, 1)),
            "labels": np.zeros((count, self.n_max), np.int32),
            "valid": np.zeros((count, self.n_max), bool),
        }

    def _size(self, row, key):
        size = tuple(self.data.sizes[row].tolist())
        if key is None:
            return transforms.evaluation_size(size, self.options)
        return transforms.train_size(size, self.draws(row, key), self.options)

    def _assemble(self, items, count, canvas):
        """Returns the arrays of `count` images with their targets."""
        batch = self.arrays(count, canvas)
        for i, (pixels, targets, label_map) in enumerate(items):
            height, width, _ = pixels.shape
            if label_map is not None:
                batch["label_maps"][i, :height, :width] = label_map
            batch["images"][i, :height, :width] = pixels
            batch["boxes"][i, : len(targets)] = targets.boxes
            batch["labels"][i, : len(targets)] = targets.labels
            batch["valid"][i, : len(targets)] = True
        return batch


def _check_label_maps(data):
    """Refuses a set whose label maps cannot be drawn."""
    if data.objects.masks is None:
        raise UserError(
            f"{data.name}: token labels need the segmentations of objects, which were not read: set "
            "data.segmentations=True, or token_label=False"
        )
    if 0 in data.categories:
        raise UserError(
            f"{data.name}: category id 0 ({data.categories[0]!r}) stands for no object in the label maps of token "
            "labels: number categories from 1"
        )


@dataclass(frozen=True, eq=False)
class StreamLoader:
    """Delivers the batches of a detection stream.

    The interface is that of `data.loaders.HostLoader`.

    sets: a loader for each task. They have the same images and differ in their objects. Evaluation uses the first.
    data: empty; the images come with each batch.
    """

    sets: tuple[DetectionLoader, ...]
    data: dict[str, jax.Array] = field(default_factory=dict)
    crops_on_host: ClassVar[bool] = True

    @property
    def canvases(self) -> tuple[Size, ...]:
        """The canvases of all batches, (height, width) each."""
        return self.sets[0].canvases

    def train_batches(self, order: np.ndarray, start_step: int, key_parts: tuple[int, ...]) -> Iterator[HostBatch]:
        """Yields a training batch for each step of an order.

        Args:
          order: int32 `[steps, batch]`, rows of the set.
          start_step: first step that is delivered.
          key_parts: (seed, task, counters); with the step they determine the transform of each image.
        """
        seed, task, *counters = key_parts
        purposes = np.array([(task, *counters, step) for step in range(len(order))])
        return self.sets[task].train_batches(order, purposes, seed, start_step)

    def test_batches(self, rows: np.ndarray, weight: np.ndarray) -> Iterator[HostBatch]:
        """Yields the batches of `canvases.evaluation_rows`."""
        return self.sets[0].test_batches(rows, weight)

    def abstract_batch(
        self, batch_size: int, with_weight: bool = False, canvas: Size | None = None
    ) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of a batch.

        Args:
          batch_size: number of images.
          with_weight: of a batch of `test_batches`, else of `train_batches`.
          canvas: (height, width); None: the first of `canvases`.
        """
        loader = self.sets[0]
        arrays = {
            **loader.arrays(batch_size, canvas or self.canvases[0]),
            "rows": np.broadcast_to(np.int32(0), batch_size),
        }
        arrays |= {
            name: np.broadcast_to(np.int32(0), (batch_size, 2)) for name in ("sizes", "extents", "original_sizes")
        }
        if with_weight:
            arrays["weight"] = np.broadcast_to(np.float32(0), batch_size)
        split = sharding.batch_sharding(loader.mesh)
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for name, x in arrays.items()}

    def read(self, data: Mapping[str, jax.Array], host_batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the batch with the input of a network under "images"; jittable.

        Args:
          data: `self.data`.
          host_batch: of `train_batches` or `test_batches`.
        """
        del data
        images = transforms.normalize(host_batch["images"], host_batch["sizes"], self.sets[0].options)
        return {**host_batch, "images": images}

    def check_image(self, row: int, part: str) -> None:
        """Prepares one image, to find a mistake before the first step.

        The arguments are those of `HostLoader.check_image`.

        Raises:
          UserError: as in `DetectionLoader.load`.
        """
        if self.sets[0].data.files[row]:  # empty in a placeholder
            self.sets[0].load(row, (0, ()) if part == "train" else None)


_NO_TARGETS = Targets(np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32))


@dataclass(frozen=True)
class _Images:
    """A random-access source for grain.

    loader: decodes the images.
    rows: int `[steps, batch]`.
    keys: (seed, purpose) of each step; None: evaluation.
    """

    loader: DetectionLoader
    rows: np.ndarray
    keys: list[tuple[int, tuple[int, ...]]] | None

    def __len__(self):
        return self.rows.size

    def __repr__(self):
        return f"Images({len(self)})"

    def __getitem__(self, index):
        step, column = divmod(index, self.rows.shape[1])
        row = int(self.rows[step, column])
        if row < 0:
            return Sample(np.zeros((0, 0, 3), np.uint8), _NO_TARGETS)
        return self.loader.load(row, self.keys[step] if self.keys else None)
