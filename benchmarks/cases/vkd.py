"""VkD: a step of a DeiT that learns from a ResNet, against PyTorch.

    python -m benchmarks.run vkd [--student small] [--rounds 7]

The DeiT has a convolutional stem. student: "small", of 48 dimensions and 3 blocks; or a network of
`cdl_jax.models.deit` with a stem, such as deit_ti_conv, at 32 pixels. All of it is float32; on GPUs the authors'
program computes in float16 where torch allows.
"""

from benchmarks import comparison
from configs import vkd_glyph


def arguments(parser) -> None:
    """Adds the case's options."""
    comparison.arguments(parser)
    parser.add_argument("--student", default="small")
    parser.add_argument("--batch", type=int, default=32)


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    from cdl_jax import config as base
    from cdl_jax.models import deit
    from cdl_jax.models.modules import families

    config = base.default("vkd", data="glyph_mini", network="deit_ti_conv", teacher="resnet20")
    own = vkd_glyph.STUDENT if options.student == "small" else families.network_options(options.student, (deit,))
    config.student.update({**own, "image_size": 32, "patch_size": 8})
    config.teacher.weights = "random"
    config.mixing.update(mixup=0.0, cutmix=0.0)
    config.optim.update(name="adamw", learning_rate=2e-3, schedule="constant", weight_decay=0.05)
    config.optim.no_decay = ("projector", "pos_embed", "cls_token", "dist_token")
    config.data.num_tasks = 1
    config.train.update(batch_size=options.batch, epochs=2)
    config.devices = 1

    def make(config, variables, classes, variant):
        from benchmarks.torch_peers.vkd import VkD

        return VkD(config, variables, classes, variant.fused_attention)

    return comparison.measure(f"VkD, {options.student}", config, make, options)
