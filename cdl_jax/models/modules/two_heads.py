"""A convolutional network with two classification heads (DKT).

The classifier of the network is the CL head, which learns from labels. A second linear layer on the features is the ST
head, the student of other networks.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from cdl_jax.models.modules.conv import Backbone, dense


class TwoHeads(nn.Module):
    """A convolutional backbone with a CL head and an ST head."""

    backbone: Backbone
    num_classes: int

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
        """Computes the logits of both heads.

        Args:
          images: float32 `[batch, size, size, 3]`.
          train: whether batch norms use the statistics of the batch, default False.

        Returns:
          ((CL logits, ST logits), out), the logits float32 `[batch, num_classes]`. `out` has the intermediates of the
          backbone by name, with `features` `[batch, dim]`.
        """
        cl, out = self.backbone(images, train)
        features = out["features"]
        return (cl, dense(self.num_classes, features.shape[-1], name="student")(features)), out


def torch_name(path: str, backbone_torch_name: Callable[[str], str], prefix: str) -> str:
    """Returns the name of a module in the authors' state dicts.

    Args:
      path: of a module, such as `backbone/tail/classifier`.
      backbone_torch_name: `torch_name` of the family of the backbone.
      prefix: of the names in the backbone, such as `slim_res18.` or `res32.`.

    >>> torch_name("backbone/tail/classifier", str.upper, "res32."), torch_name("backbone/stem", str.upper, "res32.")
    ('cl', 'res32.STEM')
    """
    head_or_backbone, _, backbone_path = path.partition("/")
    if head_or_backbone == "student":
        return "student"
    return "cl" if backbone_path == "tail/classifier" else prefix + backbone_torch_name(backbone_path)
