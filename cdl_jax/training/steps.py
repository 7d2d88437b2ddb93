"""Defines the steps of training and evaluation as pure functions.

No step depends on the name of a method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax.data.loaders import DeviceLoader, HostLoader
from cdl_jax.data.transforms import augment, erasing
from cdl_jax.evaluation import calibration
from cdl_jax.losses import Context, mask_classes
from cdl_jax.methods.base import CachesQueries, HerdsMemory, Method, Outcome, StreamInfo, Update, join, split
from cdl_jax.methods.shared import user_method
from cdl_jax.training.state import IMAGES, LOSS, TASKS, State, key_at

Loader = DeviceLoader | HostLoader


def apply_update(update: Update, opt_state, mutable, frozen, batch: Mapping[str, Any], context: Context):
    """Takes the optimizer steps of an update.

    Only variables that the update trains get a gradient.

    Returns:
      New mutable variables, new optimizer state, the `Outcome` of the last step, the learning rate, and a bool: whether
      the losses and everything that changed is finite.
    """
    if update.repeats == 1:
        return _apply_once(update, opt_state, mutable, frozen, batch, context)

    def body(carry, inputs):
        (mutable, opt_state, all_finite), (number, part) = carry, inputs
        own = context.replace(key=jax.random.fold_in(context.key, number))
        mutable, opt_state, outcome, rate, finite = _apply_once(update, opt_state, mutable, frozen, part, own)
        return (mutable, opt_state, all_finite & finite), (outcome.metrics, rate)

    parts = jax.tree.map(lambda x: x.reshape(update.repeats, -1, *x.shape[1:]), dict(batch))
    carry = mutable, opt_state, jnp.array(True)
    carry, by_step = jax.lax.scan(body, carry, (jnp.arange(update.repeats), parts))
    (mutable, opt_state, finite), (metrics, rate) = carry, jax.tree.map(lambda x: x[-1], by_step)
    return mutable, opt_state, Outcome(metrics), rate, finite


def _apply_once(update, opt_state, mutable, frozen, batch, context):
    """Takes one optimizer step; arguments and result as of `apply_update`."""
    trained, rest = split(mutable, update.trainable)

    def objective(trained):
        value = update.loss(join(frozen, rest, trained), batch, context)
        user_method.check_outcome(update, value, mutable)
        return value

    (loss, outcome), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
    direction, opt_state = update.optimizer.transform.update(gradients, opt_state, trained)
    learning_rate = update.optimizer.learning_rate(context.progress)
    trained = optax.apply_updates(trained, jax.tree.map(lambda d: -learning_rate * d, direction))
    # Without the gradients: Adam's second moment overflows before they do.
    finite = _all_finite((loss, trained, opt_state, outcome.variables))
    return join(rest, trained, outcome.variables), opt_state, outcome, learning_rate, finite


def read_image_batch(step: "TrainStep", data, host_batch, position, seed) -> dict[str, jax.Array]:
    """Returns the batch of a step that trains with labeled images.

    See `methods.base.Update`.
    """
    phase, loader, augmentation = step.method.phases[step.index], step.loader, step.augmentation
    images, labels = loader.read(data, host_batch)
    if phase.sequential:
        images = _eval_inputs(loader, images, augmentation, step.method)
    else:
        key = key_at(seed, IMAGES, phase.order, position["task"], position["epoch"], position["step"])
        images = _preprocess(
            loader,
            images,
            augmentation,
            lambda x: augment.transform_train(x, key, augmentation, step.method.image_size),
        )
        images = erasing.erase(images, key, augmentation)
    return _make_batch(images, labels, host_batch["rows"], phase.num_public)


@dataclass(frozen=True, eq=False)
class TrainStep:
    """Computes one step of a phase.

    The step is `(state, frozen, data, host_batch, position, seed) -> state`. Each batch passes the phase's updates in
    order. `frozen` is an argument, so that it is no constant of the program.

    Attributes:
      method: defines the phases.
      index: number of the phase.
      loader: reads a batch from `data` and `host_batch`.
      augmentation: the config section `augment`.
      skip_nonfinite: whether a step with NaN or infinity changes nothing. The state counts such a step in any case.
      read_batch: `(this step, data, host_batch, position, seed) -> batch`, see `read_image_batch`.
    """

    method: Method
    index: int
    loader: Loader
    augmentation: Any
    skip_nonfinite: bool = False
    read_batch: Callable = read_image_batch

    def __call__(self, state: State, frozen, data, host_batch, position, seed) -> State:
        index, old = self.index, (state.mutable, state.opt[self.index])
        mutable, opt, metrics, finite = self.updates(*old, frozen, data, host_batch, position, seed)
        if self.skip_nonfinite:
            mutable, opt = _tree_where(finite, (mutable, opt), old)
        sums = {name: state.metric_sums[index][name] + jnp.where(finite, value, 0.0) for name, value in metrics.items()}
        nonfinite = _record_nonfinite(state.nonfinite[index], finite, position, metrics)
        return state.replace(
            mutable=mutable,
            opt=_with_item(state.opt, index, opt),
            metric_sums=_with_item(state.metric_sums, index, sums),
            nonfinite=_with_item(state.nonfinite, index, nonfinite),
        )

    @cached_property
    def updates(self) -> Callable:
        """Returns the function that applies the updates of the phase to a batch.

        It is jitted, so that the trace that finds the names of the metrics also serves the step.

        Returns:
          `(mutable, opt, frozen, data, host_batch, position, seed)` -> mutable variables, optimizer states,
          `{metric: float32 scalar}`, and whether everything is finite.
        """
        return jax.jit(self._updates)

    def _updates(self, mutable, opt, frozen, data, host_batch, position, seed):
        phase = self.method.phases[self.index]
        batch = self.read_batch(self, data, host_batch, position, seed)
        key = key_at(seed, LOSS, self.index, position["task"], position["epoch"], position["step"])
        context = Context(**position, key=key, weight=host_batch.get("weight"))
        metrics, opt_states, all_finite = {"steps": jnp.ones(())}, [], jnp.array(True)
        for update, opt_state in zip(phase.updates, opt, strict=True):
            mutable, opt_state, outcome, rate, finite = apply_update(update, opt_state, mutable, frozen, batch, context)
            all_finite &= finite
            opt_states.append(opt_state)
            batch = {**batch, **outcome.batch}
            metrics |= {**outcome.metrics, "learning_rate": rate}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return mutable, tuple(opt_states), metrics, all_finite


def scan_steps(step: Callable) -> Callable:
    """Returns a step that runs `TrainStep` several times.

    Host batches and positions have a leading axis of steps.
    """

    def run(state, frozen, data, host_batches, positions, seed):
        def body(state, inputs):
            return step(state, frozen, data, *inputs, seed), None

        return jax.lax.scan(body, state, (host_batches, positions))[0]

    return run


def predict_step(method: Method, function: Callable, loader: Loader, augmentation) -> Callable:
    """Returns a step that applies a function to a batch.

    The images have the preprocessing of evaluation.

    Args:
      function: `(variables, images, context) -> outputs`.

    Returns:
      `(mutable, frozen, data, host_batch, position) -> outputs`.
    """

    def step(mutable, frozen, data, host_batch, position):
        images, _ = loader.read(data, host_batch)
        images = _eval_inputs(loader, images, augmentation, method)
        weight, queries = host_batch.get("weight"), _cached_queries(data, host_batch)
        context = Context(**position, key=jax.random.key(0), weight=weight, queries=queries)
        return function(join(frozen, mutable), images, context)

    return step


def evaluation_step(method: Method, loader: Loader, augmentation, info: StreamInfo) -> Callable:
    """Returns a step that evaluates a batch over all classes seen.

    Predictions have no task identity, except for `task_incremental`.

    Returns:
      `(mutable, frozen, data, host_batch, position) -> sums`. `host_batch["weight"]`, float32 `[batch]`, is 0 for
      padding. The sums are by the task of an image: `data["tasks"]` of its row (see `Stream.test_tasks`), or without
      these the task of its class. They are `{network: {"images": [tasks], "correct": [tasks], "task_incremental":
      [tasks], "calibration": [tasks, 15, 3], <count>: [tasks, n]}}`, `{"pairs": {"<teacher>/<student>": {"agreement":
      [tasks], "kl": [tasks]}}}`, `{"images": [tasks]}` and `{"extra_metrics": {name: [tasks]}}`. `task_incremental`
      counts the images that are correct over the classes of their own task. `{"labels": [batch]}`, -1 for padding, and
      `{"predictions": {network: [batch]}}`, int32, are not summed.
    """
    num_classes, num_tasks = info.num_classes, info.num_tasks
    task_of_rank = info.classes_of.argmax(axis=0)

    def step(mutable, frozen, data, host_batch, position):
        images, labels = loader.read(data, host_batch)
        images, weight = _eval_inputs(loader, images, augmentation, method), host_batch["weight"]
        queries = _cached_queries(data, host_batch)
        context = Context(**position, key=jax.random.key(0), weight=weight, queries=queries)
        prediction = method.predict(join(frozen, mutable), images, context)
        user_method.check_prediction(method, prediction, len(labels), num_classes)
        logits, counts = prediction

        def sum_by_task(values, ranks=None):
            weighted = values * weight.reshape(-1, *[1] * (values.ndim - 1))
            if "tasks" in data:
                return sum_tasks(weighted, data["tasks"][host_batch["rows"]], num_tasks)
            task = jnp.asarray(task_of_rank if ranks is None else task_of_rank[ranks])[labels]
            return jax.ops.segment_sum(weighted, task, num_tasks)

        extra = method.extra_metrics(logits, labels, context)
        user_method.check_extra_metrics(method, extra, len(labels))
        sums = {"images": sum_by_task(jnp.ones(labels.shape)), "extra_metrics": jax.tree.map(sum_by_task, extra)}
        predictions = {}
        for network, values in logits.items():
            ranks = label_ranks(method, network)
            mask = predictable_classes(method, context, num_classes, ranks)
            predictions[network] = mask_classes(values, mask).argmax(axis=-1)
            if "tasks" in data:
                own = jnp.asarray(info.classes_of)[data["tasks"][host_batch["rows"]]]
            else:
                tasks = task_of_rank if ranks is None else task_of_rank[ranks]
                own = jnp.asarray(tasks)[labels][:, None] == tasks
            task_predictions = mask_classes(values, own).argmax(axis=-1)
            terms = {"images": jnp.ones(labels.shape)}
            terms["correct"] = (predictions[network] == labels).astype(jnp.float32)
            terms["task_incremental"] = (task_predictions == labels).astype(jnp.float32)
            terms |= {**calibration.calibration_bins(values, labels, mask), **counts.get(network, {})}
            sums[network] = jax.tree.map(partial(sum_by_task, ranks=ranks), terms)
        pairs = {
            f"{teacher}/{student}": calibration.agreement_and_kl(
                logits[teacher], logits[student], context.seen(num_classes)
            )
            for teacher, student in method.pairs
        }
        by_image = {"labels": jnp.where(weight > 0, labels, -1), "predictions": predictions}
        return {**sums, "pairs": jax.tree.map(sum_by_task, pairs), **by_image}

    return step


def sum_tasks(values: jax.Array, tasks: jax.Array, num_tasks: int) -> jax.Array:
    """Sums values by task.

    >>> sum_tasks(jnp.array([1.0, 2.0, 4.0]), jnp.array([0, -1, 1]), 2).tolist()
    [3.0, 6.0]

    Args:
      values: `[batch, ...]`.
      tasks: int32 `[batch]`; the values of -1 count for all tasks.
      num_tasks: number of tasks.

    Returns:
      `[num_tasks, ...]`.
    """
    is_shared = (tasks < 0).reshape(-1, *[1] * (values.ndim - 1))
    own = jax.ops.segment_sum(jnp.where(is_shared, 0, values), jnp.maximum(tasks, 0), num_tasks)
    return own + jnp.where(is_shared, values, 0).sum(axis=0)


def query_step(method: CachesQueries, loader: Loader, augmentation) -> Callable:
    """Returns a step that computes the method's queries of test images.

    Returns:
      `(frozen, data, host_batch) -> {name: [batch, ...]}`.
    """

    def step(frozen, data, host_batch):
        images, _ = loader.read(data, host_batch)
        return method.queries(frozen, _eval_inputs(loader, images, augmentation, method))

    return step


def update_memory_step(method: HerdsMemory) -> Callable:
    """Returns a step that applies `method.update_memory`.

    Returns:
      `(mutable, frozen, rows) -> mutable`, without the frozen variables.
    """

    def step(mutable, frozen, rows):
        return _mutable_part(method, method.update_memory(join(frozen, mutable), rows))

    return step


def task_boundary_step(method: Method, change: Callable) -> Callable:
    """Returns a step for `start_task`, `end_task` or a `Phase.finish`.

    Returns:
      `(mutable, frozen, position, seed) -> mutable`.
    """

    def step(mutable, frozen, position, seed):
        context = Context(**position, key=key_at(seed, TASKS, position["task"]))
        return _mutable_part(method, change(join(frozen, mutable), context))

    return step


def label_ranks(method: Method, network: str) -> np.ndarray | None:
    """Returns the rank of each label in a learner's class order, int `[classes]`.

    The learner is that of the network.

    None: the network follows the run's own class order.
    """
    index = method.stream_of.get(network)
    return None if index is None else np.argsort(method.streams[index])


def predictable_classes(method: Method, context: Context, num_classes: int, ranks: np.ndarray | None = None):
    """Returns the classes that a prediction may choose, bool `[classes]`.

    ranks: see `label_ranks`.
    """
    mask = context.mask(method.predict_over, num_classes)
    return mask if ranks is None else mask[ranks]


def _mutable_part(method, variables):
    return split(variables, lambda path: not method.is_frozen(path))[0]


def _cached_queries(data, host_batch):
    return {name: values[host_batch["rows"]] for name, values in data.get("queries", {}).items()}


def _eval_inputs(loader, images, augmentation, method):
    return _preprocess(
        loader,
        images,
        augmentation,
        lambda x: augment.transform_test(x, augmentation, method.image_size),
    )


def _preprocess(loader, images, augmentation, transform):
    """Returns images as the networks take them.

    Images that were cropped on the host are only normalized.
    """
    if loader.crops_on_host:
        return augment.normalize(images, augmentation)
    flat = transform(images.reshape(-1, *images.shape[-3:]))  # an axis of learners may follow the axis of images
    return flat.reshape(*images.shape[:-3], *flat.shape[-3:])


def _make_batch(images, labels, rows, num_public):
    """Returns the batch of a step.

    The last `num_public` images of a batch are the public ones. An axis of learners may follow the axis of images.
    """
    if labels.ndim == 2:
        images, labels, rows = jnp.moveaxis(images, 1, 0), labels.T, rows.T
    if not num_public:
        return {"images": images, "labels": labels, "rows": rows}
    first_learner = (0,) * (labels.ndim - 1)
    private = slice(None, -num_public)
    return {
        "images": images[..., private, :, :, :],
        "labels": labels[..., private],
        "rows": rows[..., private],
        "public": images[(*first_learner, slice(-num_public, None))],
    }


def _all_finite(tree):
    """Returns whether all floating-point numbers of a tree are finite, bool."""
    numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return reduce(jnp.logical_and, (jnp.isfinite(leaf).all() for leaf in numbers))


def _tree_where(condition, tree, other):
    return jax.tree.map(partial(jnp.where, condition), tree, other)


def _record_nonfinite(record, finite, position, metrics):
    """Returns a phase's `State.nonfinite` after one more step.

    The result has the first nonfinite step since the last log line.
    """
    terms = {name: value for name, value in metrics.items() if name != "steps"}
    step = {"epoch": position["epoch"], "step": position["step"], "terms": terms}
    first = {name: record[name] for name in step}
    count = record["count"]
    return {"count": count + jnp.where(finite, 0, 1), **_tree_where(finite | (count > 0), first, step)}


def _with_item(values, index, value):
    return (*values[:index], value, *values[index + 1 :])
