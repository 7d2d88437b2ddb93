"""A prompted ViT against one block in NumPy, and options that change no outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from ml_collections import ConfigDict
from scipy.special import erf, softmax

from cdl_jax.errors import UserError
from cdl_jax.models import vit
from cdl_jax.models.modules import families
from cdl_jax.models.vit import Adapter, Prompt, ViT
from cdl_jax.options import defaults
from cdl_jax.runtime import operations
from tests.support.sections import checked

DIM, HEADS, PATCH, SIZE, BATCH = 8, 2, 4, 8, 3
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def model(**changes):
    sizes = {"dim": DIM, "depth": 1, "heads": HEADS, "mlp_ratio": 2.0, "patch_size": PATCH, "image_size": SIZE}
    return ViT(**{**sizes, **changes})


def apply(network, params, *prompts, **arguments):
    """Applies the network in one compiled call: many small compilations take longer."""
    train = arguments.pop("train", False)
    call = jax.jit(lambda params, prompts, arguments: network.apply(params, IMAGES, *prompts, train=train, **arguments))
    return call({"params": params}, prompts, arguments)


def random_params(**changes):
    shapes = jax.eval_shape(model(**changes).init, jax.random.key(0), IMAGES)["params"]
    rng = np.random.default_rng(7)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)


def dense(params, x):
    return x @ params["kernel"].astype(np.float64) + params["bias"]


def norm(params, x):
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def compute_block(params, prompt=None, first=None, last=None):
    """Computes a ViT of one block in float64, one image and one head at a time.

    Returns the final class token `[batch, dim]`, the tokens after the block, and the attention weights
    `[batch, heads, tokens, keys]`.
    """
    prompt, block, tokens, attention = prompt or Prompt(), params["block_0"], [], []
    before = 0 if first is None else first.shape[1]
    for b, image in enumerate(IMAGES):
        patches = [
            image[i : i + PATCH, j : j + PATCH].reshape(-1)
            for i in range(0, SIZE, PATCH)
            for j in range(0, SIZE, PATCH)
        ]
        x = np.concatenate([params["cls_token"][0], dense(params["patch_embed"], np.array(patches))])
        x = x + params["pos_embed"][0]
        x = np.concatenate([part for part in (first is not None and first[b], x, last is not None and last[b])
                            if part is not False])  # fmt: skip
        query, key, value = np.split(dense(block["attn"]["qkv"], norm(block["norm1"], x)), 3, axis=1)
        if prompt.additive is not None:
            key[before] += prompt.additive[0]
            value[before] += prompt.additive[1]
        for pair, is_prefix in ((prompt.prefix, True), (prompt.suffix, False)):
            if pair is not None:
                key = np.concatenate([pair[0][b], key] if is_prefix else [key, pair[0][b]])
                value = np.concatenate([pair[1][b], value] if is_prefix else [value, pair[1][b]])
        mixed, weights = [], []
        for head in range(HEADS):
            channels = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
            scores = query[:, channels] @ key[:, channels].T / np.sqrt(DIM // HEADS)
            weights.append(softmax(scores, axis=1))
            mixed.append(weights[-1] @ value[:, channels])
        attention.append(weights)
        x = x + dense(block["attn"]["proj"], np.concatenate(mixed, axis=1))
        hidden = dense(block["mlp"]["fc1"], norm(block["norm2"], x))
        x = x + dense(block["mlp"]["fc2"], hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
        tokens.append(x)
    tokens = np.array(tokens)
    return norm(params["norm"], tokens)[:, before], tokens, np.array(attention)


PREFIX = Prompt(prefix=(normal(BATCH, 3, DIM), normal(BATCH, 3, DIM)))
SUFFIX = Prompt(suffix=(normal(BATCH, 2, DIM), normal(BATCH, 2, DIM)))
ADDITIVE = Prompt(additive=(normal(DIM), normal(DIM)))
ALL = Prompt(prefix=PREFIX.prefix, suffix=SUFFIX.suffix, additive=ADDITIVE.additive)
FIRST, LAST = normal(BATCH, 2, DIM), normal(BATCH, 1, DIM)


@pytest.mark.parametrize(
    ("prompt", "first", "last"),
    [(None, None, None), (PREFIX, None, None), (SUFFIX, None, None), (ADDITIVE, None, None), (ALL, FIRST, LAST)],
    ids=["no prompt", "prefix", "suffix", "additive", "all and extra tokens"],
)
def test_one_block_equals_numpy(prompt, first, last):
    params = random_params()
    expected, tokens, _ = compute_block(params, prompt, first, last)
    prompts = None if prompt is None else {0: prompt}
    features, out = apply(model(), params, prompts, first_tokens=first, last_tokens=last)
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    own = slice(0, 5) if first is None else slice(2, 7)  # class token and patches
    np.testing.assert_allclose(out["block_0/tokens"], tokens[:, own], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out["class_token"], features)
    np.testing.assert_allclose(out["tokens"][:, 0], features, rtol=1e-5, atol=1e-6)
    assert out["tokens"].shape[1] == 5
    if prompt is not None or first is not None:
        assert np.abs(expected - compute_block(params)[0]).max() > 0.01


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("prompt", [None, ALL], ids=["without prompts", "prefix and suffix"])
def test_attention_maps_equal_numpy(prompt, dtype):
    params = random_params()
    _, _, expected = compute_block(params, prompt, FIRST, LAST)
    prompts = None if prompt is None else {0: prompt}
    _, out = apply(model(dtype=dtype), params, prompts, first_tokens=FIRST, last_tokens=LAST)
    attention = out["attention_0"]
    assert (attention.shape, attention.dtype) == ((BATCH, HEADS, 5, 5), jnp.float32)
    column = len(FIRST[0]) + (0 if prompt is None else 3)  # of the class token, behind the prefix
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(attention, expected[..., 2:7, column : column + 5], rtol=0, atol=tolerance)


def test_each_row_of_attention_sums_to_one_without_other_tokens():
    _, out = apply(model(depth=2), random_params(depth=2))
    for i in range(2):
        np.testing.assert_allclose(out[f"attention_{i}"].sum(axis=-1), 1, rtol=1e-5)


def test_attention_maps_leave_inserted_tokens_out():
    params, tokens = random_params(depth=2), normal(BATCH, 3, DIM)
    _, out = apply(model(depth=2), params, prompt_tokens=tokens)
    _, longer = apply(model(depth=2), params, first_tokens=tokens)
    for i in range(2):
        assert out[f"attention_{i}"].shape == (BATCH, HEADS, 5, 5)
        np.testing.assert_allclose(out[f"attention_{i}"], longer[f"attention_{i}"], atol=1e-6)


def test_prompts_of_a_layer_reach_only_that_layer():
    params = random_params(depth=3)
    _, unprompted = apply(model(depth=3), params)
    _, prompted = apply(model(depth=3), params, {1: PREFIX})
    np.testing.assert_array_equal(unprompted["patches"], prompted["patches"])
    np.testing.assert_array_equal(unprompted["block_0/tokens"], prompted["block_0/tokens"])
    assert np.abs(unprompted["block_1/tokens"] - prompted["block_1/tokens"]).max() > 0.01


def test_bfloat16_is_close_and_returns_float32_logits():
    params = random_params(depth=2, num_classes=4)
    exact, _ = apply(model(depth=2, num_classes=4), params, {0: ALL})
    rough, out = apply(model(depth=2, num_classes=4, dtype=jnp.bfloat16), params, {0: ALL})
    assert (rough.dtype, out["block_0/tokens"].dtype) == (jnp.float32, jnp.bfloat16)
    difference = np.abs(rough - exact).max() / np.abs(exact).max()
    assert 1e-5 < difference < 0.05


def test_drop_path_acts_only_in_training_and_on_both_branches_of_an_image():
    params = random_params(depth=2)
    without_drop, dropping = model(depth=2), model(depth=2, drop_path=0.5)
    np.testing.assert_array_equal(apply(dropping, params)[0], apply(without_drop, params)[0])

    @jax.jit
    def draw(key):
        return dropping.apply({"params": params}, IMAGES, train=True, rngs={"dropout": key})[1]

    draws = [draw(jax.random.key(i, impl="rbg")) for i in range(6)]
    for out in draws:  # block 0 has rate 0, block 1 the full rate
        np.testing.assert_allclose(out["block_0/tokens"], draws[0]["block_0/tokens"], rtol=1e-6)
    change = np.array([out["block_1/tokens"] - out["block_0/tokens"] for out in draws])
    untouched = (change == 0).all(axis=(2, 3))
    assert 0 < untouched.sum() < untouched.size  # both branches are dropped for a quarter of the images
    assert ((change == 0).any(axis=(2, 3)) == untouched).all()


def test_remat_gives_the_same_gradients():
    params = random_params(depth=2, layer_scale=0.1)
    keys = {"dropout": jax.random.key(3, impl="rbg")}  # compiles faster than the default

    def loss(images, prompt, remat):
        network = model(depth=2, layer_scale=0.1, drop_path=0.3, remat=remat)
        return (network.apply({"params": params}, images, {1: prompt}, train=True, rngs=keys)[0] ** 2).sum()

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    (value, gradient), (again, recomputed) = both(IMAGES, PREFIX, False), both(IMAGES, PREFIX, True)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) > 1e-4
    assert float(again) == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), recomputed, gradient)
    shapes = jax.eval_shape(model(depth=2, layer_scale=0.1, remat=True).init, jax.random.key(0), IMAGES)["params"]
    assert jax.tree.structure(shapes) == jax.tree.structure(params)


def test_merged_prompts_of_the_first_set_come_before_those_of_the_second():
    merged = vit.merge_prompts({0: ALL, 2: SUFFIX}, {0: PREFIX, 1: ADDITIVE, 2: ALL})
    assert sorted(merged) == [0, 1, 2]
    np.testing.assert_array_equal(merged[0].prefix[0], np.concatenate([ALL.prefix[0], PREFIX.prefix[0]], axis=1))
    np.testing.assert_array_equal(merged[0].suffix[1], ALL.suffix[1])
    np.testing.assert_array_equal(merged[1].additive[0], ADDITIVE.additive[0])
    assert merged[1].prefix is None
    np.testing.assert_array_equal(merged[2].suffix[1], np.concatenate([SUFFIX.suffix[1], ALL.suffix[1]], axis=1))
    added = vit.merge_prompts({0: ADDITIVE}, {0: Prompt(additive=(np.ones(DIM), np.zeros(DIM)))})
    np.testing.assert_allclose(added[0].additive[0], ADDITIVE.additive[0] + 1, rtol=1e-6)
    other = Prompt(prefix=(normal(BATCH, 1, DIM), normal(BATCH, 1, DIM)))
    order = [vit.merge_prompts({0: a}, {0: b})[0].prefix[0][:, 0] for a, b in ((PREFIX, other), (other, PREFIX))]
    np.testing.assert_array_equal(order[0], PREFIX.prefix[0][:, 0])
    np.testing.assert_array_equal(order[1], other.prefix[0][:, 0])


@pytest.mark.parametrize("remat", [False, True])
def test_tokens_that_are_computed_alone_equal_those_of_the_complete_last_block(remat):
    network = model(depth=2, layer_scale=0.5, remat=remat)
    params, own = random_params(depth=2, layer_scale=0.5), normal(BATCH, 2, DIM)
    columns = {"prompt_tokens": slice(2), "first_tokens": slice(2, 4), "class_token": 4, "last_tokens": slice(-1, None)}
    weight = {name: normal(*((BATCH, DIM) if name == "class_token" else (BATCH, x.shape[1], DIM)))
              for name, x in zip(columns, (own, FIRST, own, LAST), strict=True)}  # fmt: skip

    def loss(inputs, complete):
        images, prompt, tokens = inputs
        (_, out), state = network.apply(
            {"params": params}, images, {0: ALL, 1: prompt}, *tokens[1:], prompt_tokens=tokens[0],
            capture_intermediates=lambda module, _: module.name == "norm", mutable=["intermediates"],
        )  # fmt: skip
        if complete:  # the first call of the final norm has all tokens
            rows = state["intermediates"]["norm"]["__call__"][0].astype(jnp.float32)
            out = {name: rows[:, column] for name, column in columns.items()}
        return sum((out[name] * value).sum() for name, value in weight.items())

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    inputs = IMAGES, ALL, (own, FIRST, LAST)
    (value, gradients), (full, expected) = both(inputs, False), both(inputs, True)
    assert float(value) == pytest.approx(float(full), rel=5e-7)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-7 * max(1, np.abs(other).max()))
        assert np.abs(one).max() > 1e-3


def test_the_last_block_computes_no_patch_that_nothing_reads():
    params, tokens, hidden = random_params(depth=2), 5, 2 * DIM

    def work(name, differentiate=False):
        def output(images):
            return model(depth=2).apply({"params": params}, images)[1][name].sum()

        return operations.count(jax.grad(output) if differentiate else output, IMAGES).flops

    patches = BATCH * (tokens - 1)
    dense = 2 * patches * (2 * DIM * DIM + 2 * DIM * hidden)  # queries, the layer after attention, and the MLP
    scores = 2 * 2 * patches * tokens * DIM
    assert work("tokens") - work("class_token") == dense + scores
    assert work("tokens", True) - work("class_token", True) == 2 * dense + 3 * scores
    assert work("block_0/tokens") < work("class_token") < work("block_1/tokens")


def test_adapters_that_mix_tokens_are_applied_to_all_of_them():
    params = random_params(depth=2)

    def mix(scale, x, y):
        return y + scale * x.mean(axis=1, keepdims=True)

    arrays = jnp.float32(0.7)
    for is_tokenwise in (False, True):
        adapter = Adapter(mlp=Partial(mix, arrays), is_tokenwise=is_tokenwise)
        _, out = apply(model(depth=2), params, adapters={1: adapter})
        difference = np.abs(out["class_token"] - out["tokens"][:, 0]).max()
        assert difference > 0.01 if is_tokenwise else difference == 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_rounded_once(dtype):
    x = jnp.linspace(-6, 6, 4001).astype(dtype)
    exact = np.asarray(x, np.float64)
    exact = exact * (1 + erf(exact / np.sqrt(2))) / 2
    found = vit.gelu(x)
    assert found.dtype == dtype
    # Half of the last place of bfloat16 is at most 2^-8 of a value. XLA's erf is exact to 2^-22; x / 2 <= 3 multiplies.
    relative = 2**-8 if dtype == jnp.bfloat16 else 5e-7
    np.testing.assert_allclose(np.float64(found), exact, rtol=relative, atol=3 * 2**-22)


def test_a_named_size_builds_and_wrong_options_are_refused():
    options = ConfigDict(defaults(families.network_options("vit_s16"), dtype="bfloat16"))
    built = vit.build(options, num_classes=7)
    assert (built.dim, built.depth, built.heads, built.patch_size, built.image_size) == (384, 12, 6, 16, 224)
    assert (built.num_classes, built.dtype) == (7, jnp.bfloat16)
    with pytest.raises(UserError, match="did you mean 'vit_s16'"):
        families.network_options("vit_s61", (vit,))
    for changes, message in [
        ({"heads": 5}, "dim=384 cannot be split over heads=5"),
        ({"image_size": 225}, "image_size=225 is not a multiple of patch_size=16"),
        ({"dtype": "float16"}, "dtype='float16': use"),
        ({"attention": "flash"}, "attention='flash': use"),
        (
            {"attention": "cudnn"},
            r"attention='cudnn' needs an NVIDIA GPU from Ampere on, .* \(here: cpu, float32 and 64\)",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            vit.build(checked("network", families.network_options("vit_s16"), **changes))


def test_prompts_of_a_function_are_merged_behind_those_of_another_set():
    first = Prompt(prefix=(jnp.ones((2, 1, 8)), jnp.full((2, 1, 8), 2.0)))
    later = Partial(lambda scale, token: Prompt(prefix=(scale * token[:, None], -token[:, None])), jnp.float32(3))
    token = jnp.arange(16.0).reshape(2, 8)
    merged = vit.merge_prompts({0: first}, {0: later, 1: later})
    keys, values = merged[0](token).prefix
    np.testing.assert_array_equal(keys, np.stack([np.ones((2, 8)), 3 * token], axis=1))
    np.testing.assert_array_equal(values, np.stack([np.full((2, 8), 2), -token], axis=1))
    np.testing.assert_array_equal(merged[1](token).prefix[0], 3 * token[:, None])


def test_adapters_and_prompts_of_functions_are_recomputed_with_their_blocks():
    def add(kernel, x, y):
        return y + jnp.tanh(x) @ kernel

    def loss(arrays, network, params):
        adapters = {1: Adapter(attention=Partial(add, arrays["kernel"]), mlp=Partial(add, arrays["kernel"].T))}
        prompt = Partial(lambda a, token: Prompt(prefix=(token[:, None] * a, token[:, None])), arrays["scale"])
        return network.apply(params, images, {1: prompt}, adapters=adapters)[0].sum()

    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    arrays = {"kernel": np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32), "scale": np.float32(0.5)}
    networks = [ViT(dim=8, depth=2, heads=2, patch_size=4, image_size=8, num_classes=3, remat=r) for r in (0, 1)]
    params = networks[0].init(jax.random.key(0), images)
    params["params"]["head"]["kernel"] = jnp.arange(24.0).reshape(8, 3)
    stored, recomputed = (jax.jit(jax.value_and_grad(lambda a, n=n: loss(a, n, params)))(arrays) for n in networks)
    for one, other in zip(jax.tree.leaves(stored), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert np.abs(one).max() > 1e-4
