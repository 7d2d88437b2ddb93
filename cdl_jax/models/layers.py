"""How networks of all families see pictures, layer by layer: by that they are compared, and a memory is chosen."""


def layers(out, class_index: int = 0) -> dict:
    """Layer -> `[batch, ...]` of a network's intermediates, in its order: the maps behind its stages, or of tokens the
    class token behind every block; and `features` `[batch, dim]`, what its head reads.

    Args:
      out: intermediates by name, as the families of `cdl_jax.models` give them.
      class_index: place of the class token.
    """
    found = {name: value for name, value in out.items() if name.startswith(("layer", "stage"))}
    for name, value in out.items():
        if name.startswith("block_"):
            found[name.removesuffix("/tokens")] = value[:, class_index]
    features = out["class_token"] if "class_token" in out else out["features"]
    return {**found, "features": features}
