"""Features of networks of all families, layer by layer.

The features are for comparing representations and for selecting a memory.
"""

from collections.abc import Mapping

import jax


def named_features(out: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Selects the features of each layer from the named outputs of a network.

    Args:
      out: the named outputs of a network of `cdl_jax.models`.

    Returns:
      Layer -> `[batch, ...]`, in the order of the network: the map of each stage of a convolutional network, or the
      class token after each block of a Transformer. The last entry is `features` `[batch, dim]`, the input of the
      head, if the network has it.

    >>> import numpy as np
    >>> tokens = np.zeros((2, 5, 8))
    >>> {name: x.shape for name, x in named_features({"block_0/tokens": tokens, "class_token": tokens[:, 0]}).items()}
    {'block_0': (2, 8), 'features': (2, 8)}
    """
    layers = {name: value for name, value in out.items() if name.startswith(("layer", "stage"))}
    for name, value in out.items():
        if name.startswith("block_"):
            layers[name.removesuffix("/tokens")] = value[:, 0]
    features = out.get("features", out.get("class_token"))
    return layers if features is None else {**layers, "features": features}
