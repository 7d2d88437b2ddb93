"""How networks of all families see pictures, layer by layer: by that they are compared, and a memory is chosen."""


def named_features(out, class_index: int = 0) -> dict:
    """Layer -> `[batch, ...]` of a network's intermediates, in its order: the maps behind its stages, or of tokens the
    class token behind every block; and `features` `[batch, dim]`, what its head reads, where there is such a thing.

    Args:
      out: intermediates by name, as the families of `cdl_jax.models` give them.
      class_index: place of the class token.
    """
    found = {name: value for name, value in out.items() if name.startswith(("layer", "stage"))}
    for name, value in out.items():
        if name.startswith("block_"):
            found[name.removesuffix("/tokens")] = value[:, class_index]
    features = out.get("features", out.get("class_token"))
    return found if features is None else {**found, "features": features}
