"""A network of any convolutional family with a second linear layer on its features (DKT).

The network's own classifier is the CL head, which learns from labels; the second is the ST head, the student of other
networks.
"""

import flax.linen as nn

from cdl_jax.models.modules.conv import Backbone, dense


class TwoHeads(nn.Module):
    """`apply(variables, images, train=...)` gives `((cl, st), out)`, with batch statistics as `Backbone` has them.

    images: float32 `[batch, size, size, 3]`. cl, st: logits of the two heads, float32 `[batch, num_classes]`. out: the
    intermediates of the backbone by name, `layer1`, ..., `features` `[batch, dim]` among them.
    """

    backbone: Backbone
    num_classes: int

    @nn.compact
    def __call__(self, images, train: bool = False):
        cl, out = self.backbone(images, train)
        features = out["features"]
        return (cl, dense(self.num_classes, features.shape[-1], name="student")(features)), out


def torch_name(path: str, of_backbone, prefix: str) -> str:
    """The authors' name of a module: `student`, `cl`, or what `of_backbone` calls a part of the backbone, in `prefix`.

    Args:
      path: of one of our modules, `backbone/tail/classifier`.
      of_backbone: the family's `torch_name`. prefix: `slim_res18.`, `res32.`, ...
    """
    part, _, inside = path.partition("/")
    if part == "student":
        return "student"
    return "cl" if inside == "tail/classifier" else prefix + of_backbone(inside)
