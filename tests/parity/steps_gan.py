"""One iteration of `gan`, with the random numbers and the teacher of a fixture.

The losses, updates and optimizers are those of `gan`.

The iteration is computed in float64, as the fixtures are: in float32 rounding changes which values of
`gan_step_biggan` a ReLU passes, and with them the gradient.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdl_jax import optim
from cdl_jax.losses import Context
from cdl_jax.methods import gan
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import gan_terms
from cdl_jax.options import defaults
from cdl_jax.training.state import init_optimizers
from cdl_jax.training.steps import apply_update
from tests.parity import biggan_names

_DRAWS = ("translation_rows", "translation_columns", "cutout_rows", "cutout_columns")


class StandInTeacher:
    """The teacher of the fixtures: `3 tanh(W m)`.

    `m` has the means of 4 x 4 blocks, flattened channel first.
    """

    def outputs(self, variables, images, context):
        batch, side, _, channels = images.shape
        means = images.reshape(batch, side // 4, 4, side // 4, 4, channels).mean(axis=(2, 4))
        flat = means.transpose(0, 3, 1, 2).reshape(batch, -1)
        return {"features": 3 * jnp.tanh(flat @ variables["weight"].T)}


@dataclass(frozen=True)
class FixtureGAN(gan.GAN):
    """The method with random numbers from the batch instead of the key."""

    def discriminator_loss(self, variables, batch, context):
        augmentation = {name: batch[name].T.reshape(-1) for name in _DRAWS}
        draws = gan.Draws(batch["z"], batch["y"], augmentation)
        return self.discriminator_loss_for(variables, batch, draws, context)

    def generator_loss(self, variables, batch, context):
        last = batch["last"]
        draws = gan.Draws(last["z"], last["y"], {name: last[name] for name in _DRAWS})
        return self.generator_loss_for(variables, draws)


def run_gan_step(config, arrays):
    wide = {"float32": np.float64, "int32": np.int64}
    with jax.enable_x64(True):
        return run_wide(config, {name: array.astype(wide[array.dtype.name]) for name, array in arrays.items()})


def run_wide(config, arrays):
    d_steps, count, terms = config["d_steps"], config["batch"], tuple(k for k, on in config["kd_terms"].items() if on)
    options = ConfigDict(
        defaults(
            gan.OPTIONS, width=config["ch"], z_dim=config["z_dim"], d_steps=d_steps, ema_decay=config["ema_decay"],
            ema_start=config["ema_start"], policy=config["policy"], lecam_weight=config["lecam_weight"],
            lecam_start=config["lecam_start"], lecam_decay=config["lecam_decay"], kd_terms=terms,
            kd_weight=config["kd_weight"], kd_head=(config["hidden_dim"], config["feature_dim"]),
        )
    )  # fmt: skip
    adam = {"learning_rate": config["learning_rate"], "betas": tuple(config["adam_betas"]), "eps": config["adam_eps"]}
    optimizer = optim.build(ConfigDict(defaults(optim.OPTIONS, schedule="constant", **adam)), 1)
    texts = arrays["in/text"].shape if "correlated" in terms else ()
    teacher_terms = gan_terms.TeacherTerms(StandInTeacher(), config["feature_dim"], options, 32, texts)
    method = FixtureGAN(
        options=options, info=StreamInfo(config["classes"], (config["classes"],)),
        terms=teacher_terms if terms else None, measuring=None, network_name="none", epochs=1,
        generator_optimizer=optimizer, discriminator_optimizer=optimizer,
    )  # fmt: skip
    variables = initial_variables(method, config, arrays)
    zero = jnp.int32(0)
    context = Context(zero, zero, zero + config["classes"], zero, zero, jnp.float32(0), jax.random.key(0))
    mutable, frozen = {k: v for k, v in variables.items() if k != "teacher"}, {"teacher": variables.get("teacher", {})}

    @jax.jit
    def iterate(mutable, batch):
        opt_states, metrics = init_optimizers(method, mutable)[0], {}
        for update, opt_state in zip(method.phases[0].updates, opt_states, strict=True):
            part = batch["discriminator"] if update.repeats > 1 or not metrics else batch
            mutable, _, outcome, _, _ = apply_update(update, opt_state, mutable, frozen, part, context)
            metrics |= outcome.metrics
        return mutable, metrics

    after, metrics = jax.device_get(iterate(mutable, batches(arrays, d_steps, count)))
    names = {
        "G_loss": "generator_loss", "D_loss_real": "hinge_real", "D_loss_fake": "hinge_fake", "D_real": "score_real",
        "D_fake": "score_fake", "D_loss_LC": "lecam",
    }  # fmt: skip
    ours = {f"out/{theirs}": metrics[name] for theirs, name in names.items() if name in metrics}
    if terms:
        ours |= {f"out/D_loss_{half}_reg": config["kd_weight"] * metrics[f"kd_{half}"] for half in ("real", "fake")}
    for name, network in {"G": "generator", "G_ema": "generator_ema", "D": "discriminator"}.items():
        ours |= biggan_names.to_torch(after[network], f"out/after_step/{name}")
    return ours


def initial_variables(method, config, arrays):
    """The networks and averages of a fixture before the iteration."""
    labels = jnp.zeros((2,), jnp.int32)
    shapes = {
        "G": jax.eval_shape(
            lambda: method.generator.init(jax.random.key(0), jnp.zeros((2, config["z_dim"])), labels, False)
        ),
        "D": jax.eval_shape(
            lambda: method.discriminator.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), labels, False)
        ),
    }
    before = {name: jnp.asarray(value) for name, value in config["lecam_ema_before"].items()}
    variables = {
        "generator": biggan_names.from_torch(arrays, "param/G", shapes["G"]),
        "generator_ema": biggan_names.from_torch(arrays, "param/G_ema", shapes["G"]),
        "discriminator": biggan_names.from_torch(arrays, "param/D", shapes["D"]),
        "progress": {"iterations": jnp.int32(config["iteration"] - 1), "score_means": before},
    }
    if method.terms:
        texts = {"texts": arrays["in/text"]} if method.terms.texts else {}
        variables["teacher"] = {"network": {"weight": arrays["param/teacher.weight"]}, **texts}
    return variables


def batches(arrays, d_steps, count):
    """Returns the batch of an iteration.

    Entries of the discriminator's steps are concatenated. Entries of the augmentation have an axis of halves.
    """
    augmentation = {
        name: jnp.concatenate([arrays[f"in/d{i}/{name}"].reshape(2, count).T for i in range(d_steps)])
        for name in _DRAWS
    }
    discriminator = {
        "images": arrays["in/images"].transpose(0, 2, 3, 1),
        "labels": arrays["in/labels"],
        "z": arrays["in/z"][:-1].reshape(d_steps * count, -1),
        "y": arrays["in/y"][:-1].reshape(-1),
        **augmentation,
    }
    last = {"z": arrays["in/z"][-1], "y": arrays["in/y"][-1], **{name: arrays[f"in/g/{name}"] for name in _DRAWS}}
    return {"discriminator": discriminator, "images": discriminator["images"], "last": last}


RUNNERS = {"gan_step": run_gan_step}
