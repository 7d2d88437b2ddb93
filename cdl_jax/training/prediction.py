"""Predicts classes or boxes of given images with the steps of evaluation.

Each step is compiled once for a batch size.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data import sampling
from cdl_jax.data.detection import canvases, coco_files, transforms
from cdl_jax.data.detection.loader import DetectionLoader, StreamLoader
from cdl_jax.data.image_dataset import ArrayImage, load_file
from cdl_jax.data.loaders import HostLoader
from cdl_jax.data.stream import Split
from cdl_jax.errors import UserError
from cdl_jax.evaluation.predictions import mask_unseen
from cdl_jax.losses import Context
from cdl_jax.methods.base import CachesQueries, Method, StreamInfo, Variables, join
from cdl_jax.runtime import sharding
from cdl_jax.training import detection, steps

ImageFile = str | Path | ArrayImage
Tree = Any


@dataclass(frozen=True, eq=False)
class Predictor:
    """Holds what the prediction of a network needs.

    Attributes:
      method: of the run.
      network: one of the method's networks.
      mutable: variables after a task.
      frozen: the run's frozen variables.
      position: of the task, see `state.position`. Its `end` bounds the classes that are predicted.
      info: the stream.
      augment: the config section `augment`.
      batch_size: images of a batch; the last one is padded.
    """

    method: Method
    network: str
    mutable: Variables
    frozen: Variables
    position: Mapping[str, np.ndarray]
    info: StreamInfo
    augment: Mapping[str, Any]
    batch_size: int

    @cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """A mesh of one device."""
        return sharding.make_mesh(1)


@dataclass(frozen=True, eq=False)
class Classifier(Predictor):
    """Computes logits and features.

    Attributes:
      device_size: (height, width) of images that evaluation transforms on the device. Images of other sizes are
        transformed on the host, by Pillow. None: all images.
    """

    device_size: tuple[int, int] | None = None

    def logits(self, images: Sequence[ImageFile]) -> np.ndarray:
        """Returns the logits of images, float32 `[n, classes]`.

        Classes that evaluation excludes have -inf.

        Raises:
          UserError: an image cannot be read.
        """
        return mask_unseen(self._apply(self._logits, images), self.predictable)

    def features(self, images: Sequence[ImageFile]) -> dict[str, np.ndarray]:
        """Returns the named features of images, `{name: [n, ...]}`.

        A network without features has {}.

        Raises:
          UserError: an image cannot be read.
        """
        return dict(self._apply(self._features, images)) if self.feature_names else {}

    @property
    def input_size(self) -> tuple[int, int]:
        """The (height, width) of the images that `forward` takes."""
        return self.device_size or (self.method.image_size,) * 2

    def forward(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Returns the logits of decoded images as one pure function.

        The function includes queries and preprocessing. Each image is computed as a batch of its own, so the number of
        images may be symbolic.

        Args:
          variables: all variables of the method.
          images: uint8 `[n, *input_size, 3]`. Where Pillow transforms images on the host, these are transformed.

        Returns:
          float32 `[n, classes]`; -inf for classes that evaluation excludes.
        """

        def logits(variables, images, context):
            has_queries = isinstance(self.method, CachesQueries)
            queries = self.method.queries(variables, images) if has_queries else {}
            return self._logits(variables, images, context.replace(queries=queries)).astype(jnp.float32)

        step = steps.predict_step(self.method, logits, _GivenImages(self.device_size is None), self._options)
        found = jax.vmap(lambda image: step(variables, {}, {}, {"images": image[None]}, self.position)[0])(images)
        return jnp.where(self.predictable, found, -jnp.inf)

    @cached_property
    def predictable(self) -> np.ndarray:
        """The classes that evaluation does not exclude, bool `[classes]`."""
        ranks = steps.label_ranks(self.method, self.network)
        with jax.ensure_compile_time_eval():  # also where `forward` is traced
            context = Context(**self.position, key=jax.random.key(0))
            return np.asarray(steps.predictable_classes(self.method, context, self.info.num_classes, ranks))

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """The names of the network's features."""
        size = self.method.image_size
        images = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
        context = Context(**self.position, key=jax.random.key(0))
        variables = (self.frozen, self.mutable)
        found = jax.eval_shape(lambda v, x: self._features(join(*v), x, context), variables, images)
        return tuple(found)

    def _logits(self, variables, images, context):
        return self.method.predict(variables, images, context)[0][self.network]

    def _features(self, variables, images, context):
        # Ordered, because a compiled step sorts the keys of a dict.
        return OrderedDict(self.method.features(variables, images, context).get(self.network, {}))

    def _apply(self, function, images) -> Tree:
        """Returns the outputs of a function for all images, in their order."""
        on_device = np.array([self._is_of_device_size(image) for image in images], bool)
        rows = {on_host: np.flatnonzero(on_device != on_host) for on_host in (True, False)}
        outputs = [
            self._apply_to_kind(function, [images[row] for row in chosen], on_host)
            for on_host, chosen in rows.items()
            if len(chosen)
        ]
        order = np.argsort(np.concatenate(list(rows.values())))
        return jax.tree.map(lambda *x: np.concatenate(x)[order], *outputs)

    def _apply_to_kind(self, function, images, on_host) -> Tree:
        """Returns the outputs for images of one kind.

        The images are all transformed on the host, or all on the device.
        """
        step, query_step = self._step(function.__name__, on_host), self._query_step(on_host)
        batches = self._host_batches(images) if on_host else self._device_batches(images)
        weights = sampling.sequential_order(len(images), self.batch_size)[1]
        parts = [
            jax.device_get(self._run(step, query_step, batch, weight))
            for batch, weight in zip(batches, weights, strict=True)
        ]
        return jax.tree.map(lambda *x: np.concatenate(x)[: len(images)], *parts)

    def _run(self, step, query_step, images, weight):
        """Returns the outputs of a batch.

        As in evaluation, a separate step computes the queries.
        """
        batch = {"images": images, "weight": weight, "rows": np.arange(self.batch_size, dtype=np.int32)}
        data = {"queries": query_step(self.frozen, {}, batch)} if query_step else {}
        return step(self.mutable, self.frozen, data, batch, self.position)

    def _is_of_device_size(self, image) -> bool:
        if self.device_size is None:
            return False
        if isinstance(image, ArrayImage):
            return image.pixels.shape[:2] == self.device_size
        from cdl_jax.data.readers import decoding

        with suppress(Exception):  # the loader reports a damaged file
            return decoding.read_size(image) == self.device_size
        return False

    def _device_batches(self, images) -> Iterator[np.ndarray]:
        """Yields batches of decoded images, uint8 `[batch, height, width, 3]`."""
        for start in range(0, len(images), self.batch_size):
            pixels = [np.asarray(load_file(image)) for image in images[start : start + self.batch_size]]
            yield np.stack(pixels + pixels[:1] * (self.batch_size - len(pixels)))

    def _host_batches(self, images) -> Iterator[jax.Array]:
        """Yields batches that Pillow has transformed, uint8 `[batch, size, size, 3]`."""
        split = Split(np.zeros(len(images), np.int32), files=images)
        loader = HostLoader(
            split, self.mesh, {**self._options, "num_workers": 0, "cache_mb": 0}, self.method.image_size
        )
        order, weight = sampling.sequential_order(len(images), self.batch_size)
        for batch in loader.test_batches(order, weight):
            yield batch["images"]

    @property
    def _options(self) -> dict[str, Any]:
        """The options of the test transform, with "resize" instead of "none".

        "none" refuses images of other sizes, and "resize" leaves images of the networks' size as they are.
        """
        test = "resize" if self.augment["test"] == "none" else self.augment["test"]
        return {**self.augment, "test": test}

    def _step(self, name, on_host) -> Callable:
        key = name, on_host
        if key not in self._compiled:
            function = getattr(self, name)
            step = steps.predict_step(self.method, function, _GivenImages(on_host), self._options)
            self._compiled[key] = jax.jit(step)
        return self._compiled[key]

    def _query_step(self, on_host) -> Callable | None:
        if not isinstance(self.method, CachesQueries):
            return None
        key = "queries", on_host
        if key not in self._compiled:
            step = steps.query_step(self.method, _GivenImages(on_host), self._options)
            self._compiled[key] = jax.jit(step)
        return self._compiled[key]

    @cached_property
    def _compiled(self) -> dict[tuple[str, bool], Callable]:
        return {}


@dataclass(frozen=True)
class _GivenImages:
    """Reads batches that hold their images, for the steps of evaluation.

    crops_on_host: whether the images have been transformed, except for their normalization.
    """

    crops_on_host: bool

    def read(self, data, host_batch):
        return host_batch["images"], None


@dataclass(frozen=True, eq=False)
class Detector(Predictor):
    """Computes detections.

    Images are grouped in their order, as in evaluation: the extent of a group, its largest height and width, has a
    slight effect on its images. With `batch_size=1` an image is alone in its group.

    Attributes:
      names: category id -> name, of the categories that evaluation does not exclude.
    """

    names: Mapping[int, str]

    def detections(self, images: Sequence[ImageFile]) -> list[dict[str, np.ndarray]]:
        """Returns the detections of each image.

        Returns:
          `scores`, `labels` and `boxes` of each image, see `detections.top_detections`.

        Raises:
          UserError: an image cannot be read, or the batch size is no multiple of `augment.group_size`.
        """
        size = min(self.augment["group_size"], self.batch_size)
        if self.batch_size % size:
            raise UserError(f"batch_size={self.batch_size} must be 1 or a multiple of augment.group_size={size}")
        loader = self._loader(images, size)
        outputs = []
        for batch in loader.test_batches(*canvases.evaluation_rows(len(images), self.batch_size // size, size)):
            found = jax.device_get(self._step(self.mutable, self.frozen, loader.data, batch, self.position))
            rows, own = np.asarray(batch["rows"]), found[self.network]
            outputs += [{name: own[name][i] for name in own} for i in np.flatnonzero(rows >= 0)]
        return outputs

    @property
    def input_size(self) -> transforms.Size:
        """The (height, width) of a canvas that holds every image of evaluation.

        (0, 0): the images have no bound.
        """
        if sizes := self.augment["canvases"]:
            return tuple(max(sides) for sides in zip(*sizes, strict=True))
        cap = self.augment["eval_max_size"] or self.augment["eval_size"] * 1333 // 800
        return (-(-cap // canvases.MULTIPLE) * canvases.MULTIPLE,) * 2

    def forward(self, variables: Variables, images: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
        """Returns the detections of decoded images as one pure function.

        The function includes the normalization.

        Each image is alone in its group, so the number of images may be symbolic.

        Args:
          variables: all variables of the method.
          images: uint8 `[n, *input_size, 3]`, resized as in evaluation, each at the top left of its canvas.
          sizes: int32 `[n, 2]`, (height, width) of the resized images.

        Returns:
          `scores`, `labels` and `boxes`, see `detections.top_detections`. Boxes are relative to the image.
        """
        step = detection.evaluation_step(self.method, _GivenCanvases(self.augment), None, self.info)

        def detect(image, size):
            own, one = size[None], jnp.ones((1, 2), jnp.int32)
            batch = {"images": image[None], "sizes": own, "extents": own, "original_sizes": one, "weight": jnp.ones(1)}
            return jax.tree.map(lambda x: x[0], step(variables, {}, {}, batch, self.position)[self.network])

        return jax.vmap(detect)(images, sizes)

    def _loader(self, images, group_size) -> StreamLoader:
        data = _unlabeled_set(images, self.names)
        options = {**self.augment, "canvases": self._canvases(data)}
        loader = DetectionLoader.build(data, self.mesh, options, group_size=group_size, training=False)
        return StreamLoader((loader,))

    def _canvases(self, data) -> tuple[transforms.Size, ...]:
        """Returns canvases for a set of images.

        They are the canvases of the config, and one that holds all images where these do not.
        """
        own = tuple(map(tuple, self.augment["canvases"]))
        (largest,) = canvases.canvases_for(data, {**self.augment, "canvases": ()}, training=False)
        return own if any(np.greater_equal(canvas, largest).all() for canvas in own) else (*own, largest)

    @cached_property
    def _step(self) -> Callable:
        return jax.jit(detection.evaluation_step(self.method, _GivenCanvases(self.augment), None, self.info))


@dataclass(frozen=True)
class _GivenCanvases:
    """Normalizes batches of images on canvases, as `StreamLoader` does.

    options: of `transforms.OPTIONS`.
    """

    options: Mapping[str, Any]

    def read(self, data, host_batch):
        images = transforms.normalize(host_batch["images"], host_batch["sizes"], self.options)
        return {**host_batch, "images": images}


def _unlabeled_set(images, categories) -> coco_files.DetectionSet:
    """Returns a set of images without objects.

    Raises:
      UserError: the header of a file cannot be read.
    """
    sizes = [
        image.pixels.shape[:2] if isinstance(image, ArrayImage) else coco_files.read_size(str(image))
        for image in images
    ]
    files = tuple(image if isinstance(image, ArrayImage) else str(image) for image in images)
    ids = np.arange(len(files))
    return coco_files.DetectionSet(
        "images", categories, ids, files, np.array(sizes, np.int32), coco_files.Objects.empty()
    )
