"""Classification heads and the initialisation of torch's linear layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what torch.nn.Linear draws its weight from.
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int):
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)) of torch.nn.Linear's bias."""

    def draw(key, shape, dtype=float):
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return draw


def is_head(path) -> bool:
    """Whether the leaf at `path` is of a layer that tells classes apart, in the networks of all families."""
    outer, layer = ("", "", *path)[-3:-1]
    return layer in ("head", "head_dist", "classifier") or (outer, layer) == ("tail", "fc2")


class LinearHead(nn.Module):
    """`[batch, dim]` features to `[batch, num_classes]` float32 logits, for all classes of the stream at once.

    start: "torch", as torch draws a linear layer, or "zeros".
    """

    num_classes: int
    start: str = "torch"

    @nn.compact
    def __call__(self, features):
        zeros = nn.initializers.zeros
        kernel, bias = (zeros, zeros) if self.start == "zeros" else (torch_kernel, torch_bias(features.shape[-1]))
        return nn.Dense(self.num_classes, kernel_init=kernel, bias_init=bias, name="linear")(features)


class NormalizedHead(nn.Module):
    """APT's head in CDL: `LN(x) . W_c / |W_c| + b_c`, `[batch, dim]` to `[batch, num_classes]` float32.

    The layer norm's `scale` and `shift` are in the collection "state": the published programs never train them.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features):
        dim = features.shape[-1]
        kernel = self.param("kernel", torch_kernel, (dim, self.num_classes))
        bias = self.param("bias", torch_bias(dim), (self.num_classes,))
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, use_bias=False, use_scale=False)
        scale = self.variable("state", "scale", jnp.ones, (dim,)).value
        shift = self.variable("state", "shift", jnp.zeros, (dim,)).value
        return (norm(features) * scale + shift) @ (kernel / jnp.linalg.norm(kernel, axis=0).clip(1e-12)) + bias
