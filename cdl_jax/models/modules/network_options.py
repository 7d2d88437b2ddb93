"""Options that the networks of all families have."""

from cdl_jax.options import Option


def shared_options(family: str, *, image_size: int, weights: str = "random") -> dict[str, Option]:
    """Declares the options that every family has.

    Args:
      family: file of `cdl_jax/models/`.
      image_size: default side of the images in pixels.
      weights: default of `weights`.
    """
    return {
        "family": Option(family, "the family of networks: a name of --list, or a dotted path"),
        "image_size": Option(image_size, "side of the input images in pixels", minimum=1),
        "weights": Option(
            weights,
            "pretrained weights: a file, its folder, the timm name of fetched weights, a finished run, "
            '"package:NAME", or "random"',
        ),
        "weights_key": Option("", 'network of a checkpoint with more than one, such as "model_ema"'),
    }
