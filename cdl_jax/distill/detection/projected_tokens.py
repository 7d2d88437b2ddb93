"""VkD for detectors: orthogonal projections of all tokens.

Each kind of token (four levels of patches, detection tokens of the backbone and of the neck) has a projector of its
own. Projected tokens and the teacher's are standardized: each channel gets mean 0 and variance 1 over the tokens of a
group. Token i of the student is compared with token i of the teacher.

Source:
  Miles et al., CVPR 2024, arXiv 2403.06213.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.distill.detection import base
from cdl_jax.models.modules import feature_norms, orthogonal
from cdl_jax.options import Option

OPTIONS = {
    **base.OPTIONS,
    "epsilon": Option(
        0.0,
        "added to each channel's variance; 0, as in the authors' code, magnifies the rounding of constant channels",
    ),
    "projector": Option(
        "",
        "parametrization of the projections; empty: matrix_exp between equal widths, else householder",
        choices=("", *orthogonal.MAPS),
    ),
}

_PATCH_LEVELS = 4


class ScaledProjector(nn.Module):
    """Maps `[..., dim]` to `[..., features]`.

    An orthogonal map comes first, then a scale and a shift of each channel. Scale and shift have no effect on tokens
    that are standardized afterwards. Published checkpoints have them.

    Attributes:
      features: number of output channels.
      kind: of the orthogonal map, see `models.modules.orthogonal`.
    """

    features: int
    kind: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        projected = orthogonal.OrthogonalDense(self.features, self.kind, name="projector")(x)
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        return projected * scale + self.param("bias", nn.initializers.zeros, (self.features,))


class TokenProjectors(nn.Module):
    """Projects each kind of token by a `ScaledProjector` of its own.

    The attributes are those of `ScaledProjector`. Modules have the names of the authors' checkpoints:
    `patch_projector_<level>`, `body_det_projector`, `neck_det_projector`.
    """

    features: int
    kind: str = ""

    @nn.compact
    def __call__(self, rows: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns the projection of each entry, `[..., features]`."""
        return {
            name: ScaledProjector(self.features, self.kind, name=projector_name(name))(x) for name, x in rows.items()
        }


def projector_name(term: str) -> str:
    """Returns the name of the module that projects a kind of token.

    >>> projector_name("patch_1"), projector_name("body")
    ('patch_projector_1', 'body_det_projector')
    """
    kind, _, level = term.partition("_")
    return f"{kind}_projector_{level}" if level else f"{kind}_det_projector"


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of projected tokens.

    Its loss is `weight sum_k mean smooth-L1(std(P_k x_student), std(x_teacher))` over the kinds of tokens k.

    Raises:
      UserError: nothing is compared, or the detectors have different numbers of tokens.
    """
    base.check(options, teacher, student)
    projectors = TokenProjectors(teacher.dim, options.projector)

    def loss(variables, student_out, teacher_out, labels, context):
        del labels, context
        rows, targets = (
            base.token_rows(out, options, len(student_out["inside"][0])) for out in (student_out, teacher_out)
        )
        counted = base.counted_rows(student_out, rows)
        projected = projectors.apply(variables, rows)
        terms = {
            f"distil_{name}": standardized_distance(projected[name], targets[name], counted[name], options.epsilon)
            for name in projected
        }
        total = sum(terms.values())
        return options.weight * total, {"loss_distil": total, **terms}

    def init(key):
        patches = [f"patch_{level + 1}" for level in range(_PATCH_LEVELS)] if options.patches else []
        names = patches + [name for name in ("body", "neck") if options[name]]
        return projectors.init(key, {name: jnp.zeros((1, student.dim)) for name in names})

    return Scheme(loss=loss, needs=("patch_maps", "body_tokens", "neck_tokens"), init=init)


def standardized_distance(
    student: jax.Array, teacher: jax.Array, counted: jax.Array, epsilon: float = 0.0
) -> jax.Array:
    """Computes the mean smooth-L1 distance (beta 1) of standardized tokens.

    Args:
      student: `[G, rows, channels]`, projected.
      teacher: `[G, rows, channels]`.
      counted: bool `[G, rows]`; other rows have no effect.
      epsilon: added to the variances, default 0.

    Returns:
      A scalar, the mean over all groups.
    """
    standardize = jax.vmap(lambda x, counted: feature_norms.batch_norm(x, epsilon, counted))
    distances = optax.huber_loss(standardize(student, counted), standardize(teacher, counted)).mean(axis=-1)
    return distances.mean(axis=1, where=counted).mean()
