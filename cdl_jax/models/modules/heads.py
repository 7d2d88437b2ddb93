"""Classification heads, and the initial values of torch's linear layer."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

NAMES = frozenset(("head", "head_dist", "classifier"))  # of the layers that return logits

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): the initial weights of torch.nn.Linear.
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Callable:
    """Returns the initializer of the bias of torch.nn.Linear.

    The bias is from U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    >>> bool((abs(torch_bias(4)(jax.random.key(0), (100,))) <= 0.5).all())
    True
    """

    def init(key, shape, dtype=float):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return init


def is_head(path: Sequence[str]) -> bool:
    """Returns whether the variable at `path` belongs to a classification head.

    >>> is_head(("params", "head", "kernel")), is_head(("params", "tail", "fc2", "bias")), is_head(("params", "norm"))
    (True, True, False)
    """
    outer, layer = ("", "", *path)[-3:-1]
    return layer in NAMES or (outer, layer) == ("tail", "fc2")


class LinearHead(nn.Module):
    """A linear layer from features to the logits of all classes.

    Features are `[batch, dim]`, logits float32 `[batch, num_classes]`.

    Attributes:
      num_classes: number of logits.
      init_values: "torch", those of torch's linear layer, or "zeros". Default "torch".
    """

    num_classes: int
    init_values: str = "torch"

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        kernel, bias = (zeros, zeros) if self.init_values == "zeros" else (torch_kernel, torch_bias(features.shape[-1]))
        return nn.Dense(self.num_classes, kernel_init=kernel, bias_init=bias, name="linear")(features)


class NormalizedHead(nn.Module):
    """APT's head in CDL.

    Features x are `[batch, dim]`, logits float32 `[batch, num_classes]`. Logit c is `LN(x) . W_c / |W_c| + b_c`. The
    `scale` and `shift` of the layer norm are in the collection "state": the published programs never train them.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        dim = features.shape[-1]
        kernel = self.param("kernel", torch_kernel, (dim, self.num_classes))
        bias = self.param("bias", torch_bias(dim), (self.num_classes,))
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, use_bias=False, use_scale=False)
        scale = self.variable("state", "scale", jnp.ones, (dim,)).value
        shift = self.variable("state", "shift", jnp.zeros, (dim,)).value
        return (norm(features) * scale + shift) @ (kernel / jnp.linalg.norm(kernel, axis=0).clip(1e-12)) + bias
