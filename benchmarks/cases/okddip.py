"""OKDDip: a step of four branches, one of them the leader, against PyTorch.

    python -m benchmarks.run okddip [--network small] [--rounds 7]

network: "small", a ResNet-20 of a quarter of the width; or a network of `cdl_jax.models.resnet`, such as resnet32.
"""

from benchmarks import comparison
from configs import okddip_glyph


def arguments(parser) -> None:
    """Adds the case's options."""
    comparison.arguments(parser)
    parser.add_argument("--network", default="small")
    parser.add_argument("--batch", type=int, default=32)


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    config = okddip_glyph.get_config("method=okddip")
    if options.network != "small":
        from cdl_jax.models import resnet
        from cdl_jax.models.modules import families

        config.network.update(families.network_options(options.network, (resnet,)))
    config.devices, config.augment.train, config.train.batch_size = 1, "none", options.batch
    config.okddip.length = 0  # distillation has its full weight from the first step

    def make(config, variables, classes, variant):
        from benchmarks.torch_peers.okddip import OKDDip

        return OKDDip(config, variables, classes)

    return comparison.measure(f"OKDDip, {options.network}", config, make, options)
