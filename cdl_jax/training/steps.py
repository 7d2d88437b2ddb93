"""The compiled steps of training and evaluation. Knows no method by name."""

from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from cdl_jax.data.transforms import augment, erasing
from cdl_jax.evaluation import calibration
from cdl_jax.losses import Context, mask_classes
from cdl_jax.methods.base import join, split

# What randomness is for: the first number folded into the run's key.
_IMAGES, _LOSS, _INIT, _TASKS = range(4)


@struct.dataclass
class State:
    """What training changes.

    live: the variables that are not frozen for the whole run.
    opt: for each phase, the optimizer states of its updates.
    sums: for each phase, metrics summed over the steps since its last log line, and `steps`, their number.
    bad: for each phase, of the steps since its last log line that came to a NaN or an infinity (and are not in `sums`)
      the `count`, and `epoch`, `step` and the metrics (`terms`) of the first.
    kept: the live variables that the task ends with if it is stopped early; {} where it never is.
    """

    live: Any
    opt: tuple[tuple, ...]
    sums: tuple[dict, ...]
    bad: tuple[dict, ...]
    kept: Any = struct.field(default_factory=dict)


def key_at(seed, *position) -> jax.Array:
    """The random key of a position in the run, so that no generator's state needs to be saved."""
    return reduce(jax.random.fold_in, position, jax.random.key(seed))


def init_key(seed: int) -> jax.Array:
    """The key from which a run's variables are drawn."""
    return key_at(seed, _INIT)


def position(task, *, epoch=0, step=0, steps=1, accumulate=1) -> dict:
    """The numbers of a step's `Context`, as arrays: a change of value compiles nothing anew.

    epoch, step: or of several steps `[n]`, whose numbers are then `[n]` each.
    accumulate: how many steps make one of the optimizer, all of which have the progress of the first.
    """
    numbers = {
        "task": np.int32(task.index),
        "first": np.int32(task.first),
        "end": np.int32(task.end),
        "epoch": np.int32(epoch),
        "step": np.int32(step),
        "progress": np.float32(epoch + (step - step % accumulate) / steps),
    }
    return {name: np.broadcast_to(x, np.shape(step)) for name, x in numbers.items()} if np.ndim(step) else numbers


def task_state(method, live) -> State:
    """The state in which a task begins: fresh optimizers, nothing summed."""
    opt = tuple(
        tuple(update.optimizer.transform.init(split(live, update.trainable)[0]) for update in phase.updates)
        for phase in method.phases
    )
    return State(live, opt, *(tuple({} for _ in method.phases) for _ in range(2)))


def train_step(method, index, source, augmentation, skip=False):
    """The step of phase number `index`, to be compiled: `(state, frozen, data, item, position, seed) -> state`.

    Each batch passes the phase's updates in order; where `item` has `constants`, the batch has them. A gradient exists
    only for what an update trains; `frozen` is an argument, so that it becomes no constant of the program.

    skip: whether a bad step, one in which a loss or what an update has changed is not finite, changes nothing. It is
      noted in the state either way, where it waits for the host to look.
    """
    phase = method.phases[index]

    @jax.jit  # so that what is asked for the shapes of the metrics is traced no second time
    def learn(live, opt, frozen, data, item, position, seed):
        place = position["task"], position["epoch"], position["step"]
        images, labels = _seen(method, phase, source, augmentation, data, item, position, seed)
        batch = _batch(images, labels, item["rows"], phase.num_public)
        context = Context(**position, key=key_at(seed, _LOSS, index, *place), weight=item.get("weight"))
        metrics, after, sound = {"steps": jnp.ones(())}, [], jnp.array(True)
        for update, opt_state in zip(phase.updates, opt, strict=True):
            trained, rest = split(live, update.trainable)

            def objective(trained, update=update, rest=rest, batch=batch):
                return update.loss(join(frozen, rest, trained), batch, context)

            (value, outcome), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
            direction, opt_state = update.optimizer.transform.update(gradients, opt_state, trained)
            rate = update.optimizer.learning_rate(context.progress)
            trained = optax.apply_updates(trained, jax.tree.map(lambda d, rate=rate: -rate * d, direction))
            live = join(rest, trained, outcome.variables)
            # Not the gradients: Adam's second moment overflows before they do.
            sound &= _finite((value, trained, opt_state, outcome.variables))
            after.append(opt_state)
            batch = {**batch, **outcome.batch}
            metrics |= {**outcome.metrics, "learning_rate": rate}
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return live, tuple(after), metrics, sound

    def step(state, frozen, data, item, position, seed):
        old = state.live, state.opt[index]
        live, opt, metrics, sound = learn(*old, frozen, data, item, position, seed)
        if skip:
            live, opt = _if(sound, (live, opt), old)
        before = state.sums[index]
        sums = {name: before.get(name, 0.0) + jnp.where(sound, value, 0.0) for name, value in metrics.items()}
        return state.replace(
            live=live,
            opt=_put(state.opt, index, opt),
            sums=_put(state.sums, index, sums),
            bad=_put(state.bad, index, _noted(state.bad[index], sound, position, metrics)),
        )

    return step


def _seen(method, phase, source, augmentation, data, item, position, seed):
    """(pictures as the phase's updates see them, their labels)."""
    images, labels = source.read(data, item)
    if phase.sequential:
        return _tested(source, images, augmentation, method), labels
    key = key_at(seed, _IMAGES, phase.order, position["task"], position["epoch"], position["step"])
    images = _prepared(
        source, images, augmentation, lambda x: augment.transform_train(x, key, augmentation, method.image_size)
    )
    return erasing.erase(images, key, augmentation), labels


def several(step):
    """What `train_step` gives, for several steps in one call: items and positions have an axis of steps in front."""

    def call(state, frozen, data, items, positions, seed):
        return jax.lax.scan(lambda now, at: (step(now, frozen, data, *at, seed), None), state, (items, positions))[0]

    return call


def _finite(tree):
    """bool: no floating-point number of `tree` is NaN or infinite."""
    numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return reduce(jnp.logical_and, (jnp.isfinite(leaf).all() for leaf in numbers))


def _if(chosen, tree, other):
    return jax.tree.map(partial(jnp.where, chosen), tree, other)


def _noted(bad, sound, position, metrics):
    """`State.bad` of a phase after one more step."""
    terms = {name: value for name, value in metrics.items() if name != "steps"}
    now = {"epoch": position["epoch"], "step": position["step"], "terms": terms}
    count = bad.get("count", jnp.int32(0))
    first = {name: bad[name] for name in now} if bad else jax.tree.map(jnp.zeros_like, now)
    return {"count": count + jnp.where(sound, 0, 1), **_if(sound | (count > 0), first, now)}


def _batch(images, labels, rows, public):
    """The batch of a step; behind the pictures may lie `public` ones, and behind each picture an axis of learners."""
    if labels.ndim == 2:
        images, labels, rows = jnp.moveaxis(images, 1, 0), labels.T, rows.T
    if not public:
        return {"images": images, "labels": labels, "rows": rows}
    of_first = (0,) * (labels.ndim - 1)
    own = {"images": images[..., :-public, :, :, :], "labels": labels[..., :-public], "rows": rows[..., :-public]}
    return {**own, "public": images[(*of_first, slice(-public, None))]}


def _put(values, index, value):
    return (*values[:index], value, *values[index + 1 :])


def telling_step(method, tell, source, augmentation):
    """What `tell(variables, images, context)` says of a batch of tested pictures, to be compiled: `(live, frozen, data,
    item, position) -> what it says`."""

    def step(live, frozen, data, item, position):
        images, _ = source.read(data, item)
        images = _tested(source, images, augmentation, method)
        context = Context(**position, key=jax.random.key(0), queries=_constants(data, item))
        return tell(join(frozen, live), images, context)

    return step


def evaluation_step(method, source, augmentation, info):
    """The evaluation of a batch, to be compiled: `(live, frozen, data, item, position) -> sums`.

    item: beside the pictures `weight` float32 `[batch]`, 0 for padding. sums: `{network: {"images": [tasks], "correct":
    [tasks],
    "calibration": [tasks, 15, 3], <count>: [tasks, n]}}`, `{"pairs": {"<teacher>/<student>": {"agreement": [tasks],
    "kl": [tasks]}}}`, `{"images": [tasks]}` and `{"measures": {name: [tasks]}}`, by the task that a picture belongs to.
    Predictions are over all classes seen, without task identity.
    """
    num_classes, num_tasks = info.num_classes, info.num_tasks
    task_of_rank = np.repeat(np.arange(num_tasks), info.task_sizes)

    def step(live, frozen, data, item, position):
        images, labels = source.read(data, item)
        images = _tested(source, images, augmentation, method)
        constants = _constants(data, item)
        context = Context(**position, key=jax.random.key(0), weight=item["weight"], queries=constants)
        logits, counts = method.predict(join(frozen, live), images, context)

        def by_task(values, rank=None):
            weight = item["weight"].reshape(-1, *[1] * (values.ndim - 1))
            task = jnp.asarray(task_of_rank if rank is None else task_of_rank[rank])[labels]
            return jax.ops.segment_sum(values * weight, task, num_tasks)

        measures = method.extra_metrics(logits, labels, context)
        sums = {"images": by_task(jnp.ones(labels.shape)), "measures": jax.tree.map(by_task, measures)}
        for network, values in logits.items():
            rank = own_rank(method, network)
            named = allowed(method, context, num_classes, rank)
            own = {"images": jnp.ones(labels.shape)}
            own["correct"] = (mask_classes(values, named).argmax(axis=-1) == labels).astype(jnp.float32)
            own |= {**calibration.of_network(values, labels, named), **counts.get(network, {})}
            sums[network] = jax.tree.map(partial(by_task, rank=rank), own)
        pairs = {
            f"{teacher}/{student}": calibration.of_pair(logits[teacher], logits[student], context.seen(num_classes))
            for teacher, student in method.pairs
        }
        return {**sums, "pairs": jax.tree.map(by_task, pairs)}

    return step


def constants_step(method, source, augmentation):
    """What `method.constants` tells of a batch, to be compiled: `(frozen, data, item) -> {name: [batch, ...]}`."""

    def step(frozen, data, item):
        images, _ = source.read(data, item)
        return method.queries(frozen, _tested(source, images, augmentation, method))

    return step


def _constants(data, item):
    return {name: values[item["rows"]] for name, values in data.get("constants", {}).items()}


def own_rank(method, network):
    """int `[classes]`: at which place each label comes in the stream of the learner whose network it is, or None."""
    index = method.stream_of.get(network)
    return None if index is None else np.argsort(method.streams[index])


def allowed(method, context, num_classes, rank=None):
    """bool `[classes]`: what predictions may name, for a network to which the labels come at the places `rank`."""
    named = context.mask(method.predict_over, num_classes)
    return named if rank is None else named[rank]


def _tested(source, images, augmentation, method):
    return _prepared(source, images, augmentation, lambda x: augment.transform_test(x, augmentation, method.image_size))


def _prepared(source, images, augmentation, transform):
    """Pictures as the networks take them; a source that has cropped them on the host leaves only the normalisation."""
    if source.crops_on_host:
        return augment.normalize(images, augmentation)
    flat = transform(images.reshape(-1, *images.shape[-3:]))  # behind the axis of pictures there may be one of learners
    return flat.reshape(*images.shape[:-3], *flat.shape[-3:])


def remembering(method):
    """`method.update_memory` to be compiled: `(live, frozen, rows) -> live`."""

    def changed(live, frozen, rows):
        return split(method.update_memory(join(frozen, live), rows), lambda path: not method.is_frozen(path))[0]

    return changed


def between_tasks(method, change):
    """`method.start_task` or `end_task` to be compiled: `(live, frozen, position, seed) -> live`."""

    def changed(live, frozen, place, seed):
        context = Context(**place, key=key_at(seed, _TASKS, place["task"]))
        return split(change(join(frozen, live), context), lambda path: not method.is_frozen(path))[0]

    return changed
