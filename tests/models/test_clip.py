"""CLIP's towers against their formulas in NumPy, float64; whole models against open_clip are in test_peers_clip.py."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.models import clip_resnet, clip_vit, text_transformer, transformer

IMAGE = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
TEXT = {"vocab_size": 20, "width": 16, "layers": 2, "heads": 2, "project": 6}


def randomised(model, x):
    """Variables with random numbers in every array."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnums=0)
def features(model, variables, x):
    out = model.apply(variables, x, train=False)
    return (out[1] if isinstance(out, tuple) else out)["features"]


def layer_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def quick_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def attend(query, key, value, heads, causal=False):
    """(Q, D), (N, D), (N, D) -> (Q, D), head by head."""
    out = []
    for q, k, v in zip(*(np.split(x, heads, axis=1) for x in (query, key, value)), strict=True):
        scores = q @ k.T / math.sqrt(q.shape[1])
        if causal:
            scores[np.triu_indices(len(scores), 1)] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out.append(weights / weights.sum(1, keepdims=True) @ v)
    return np.concatenate(out, axis=1)


def block(p, x, heads, activation, causal):
    qkv = np.split(dense(p["attention"]["qkv"], layer_norm(p["norm1"], x)), 3, axis=1)
    x = x + dense(p["attention"]["out"], attend(*qkv, heads, causal))
    return x + dense(p["fc2"], activation(dense(p["fc1"], layer_norm(p["norm2"], x))))


@pytest.mark.parametrize(("name", "activation"), [("gelu", gelu), ("quick_gelu", quick_gelu)])
def test_text_transformer(name, activation):
    tokens = np.array([[18, 5, 0, 7, 19, 0, 0], [18, 19, 0, 0, 0, 0, 0]])
    model = text_transformer.make(**TEXT, activation=name)
    variables = randomised(model, jnp.array(tokens))
    p, expected = jax.tree.map(np.float64, variables["params"]), []
    for row, end in zip(tokens, (4, 1), strict=True):
        x = p["token"]["embedding"][row] + p["position"]
        for layer in ("block1", "block2"):
            x = block(p[layer], x, 2, activation, causal=True)
        expected.append(layer_norm(p["norm"], x[end]) @ p["project"]["kernel"])
    np.testing.assert_allclose(features(model, variables, jnp.array(tokens)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "activation"), [("gelu", gelu), ("quick_gelu", quick_gelu)])
def test_vision_transformer(name, activation):
    model = clip_vit.make(width=16, layers=2, heads=2, patch=16, project=6, activation=name)
    variables = randomised(model, IMAGE)
    p, expected = jax.tree.map(np.float64, variables["params"]), []
    assert p["patch"].keys() == {"kernel"}
    for image in np.float64(IMAGE):
        patches = [image[i : i + 16, j : j + 16].ravel() for i in (0, 16) for j in (0, 16)]
        x = np.stack([p["class_token"], *(np.stack(patches) @ p["patch"]["kernel"].reshape(-1, 16))])
        x = layer_norm(p["norm_pre"], x + p["position"])
        for layer in ("block1", "block2"):
            x = block(p[layer], x, 2, activation, causal=False)
        expected.append(layer_norm(p["norm"], x[0]) @ p["project"]["kernel"])
    np.testing.assert_allclose(features(model, variables, IMAGE), expected, rtol=1e-4, atol=1e-4)


def test_attention_pooling():
    """The mean is the query; it, and each of 2 x 3 places, is a key."""
    pool = clip_resnet.AttentionPool(heads=2, features=5, dtype=jnp.float32)
    x = np.random.default_rng(0).normal(size=(2, 2, 3, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda: pool.init(jax.random.key(0), x))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    p, expected = jax.tree.map(np.float64, variables["params"]), []
    for places in np.float64(x).reshape(2, 6, 8):
        tokens = np.concatenate([places.mean(0, keepdims=True), places]) + p["position"]
        query, key, value = (dense(p[name], tokens) for name in ("query", "key", "value"))
        expected.append(dense(p["out"], attend(query[:1], key, value, 2))[0])
    np.testing.assert_allclose(jax.jit(pool.apply)(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_resnet_block_averages_where_it_strides():
    """A strided block whose residual branch is zero gives the shortcut's 1x1 convolution of 2x2 means."""
    model = clip_resnet.make(stages=(1, 1), width=8)
    variables = jax.jit(lambda: model.init(jax.random.key(0), IMAGE, train=False))()
    p = variables["params"]["stage2_block1"]
    assert not p["norm3"]["scale"].any()
    capture = jax.jit(lambda v: model.apply(v, IMAGE, train=False, capture_intermediates=True))
    _, state = capture(variables)
    before, after = (state["intermediates"][f"stage{s}_block1"]["__call__"][0] for s in (1, 2))
    means = np.asarray(before).reshape(2, 4, 2, 4, 2, 32).mean((2, 4))
    shortcut = means @ np.asarray(p["conv_shortcut"]["kernel"])[0, 0] / math.sqrt(1 + 1e-5)
    np.testing.assert_allclose(after, np.maximum(shortcut, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("image", "variant", "project", "text", "parameters"),
    [
        # those of OpenAI's models, the scale included
        ("clip_resnet", "rn50", 1024, {}, 102_007_137),
        ("clip_resnet", "rn101", 512, {}, 119_688_033),
        ("clip_vit", "vit_b32", 512, {}, 151_277_313),
        ("clip_vit", "vit_b16", 512, {}, 149_620_737),
        ("clip_vit", "vit_l14", 768, {"width": 768, "heads": 12}, 427_616_513),
    ],
)
def test_parameter_counts(image, variant, project, text, parameters):
    tower = plugin.find("models", image, "make").make(variant=variant, project=project)
    text = text_transformer.make(vocab_size=49408, project=project, **text)
    found = 1
    for model, shape, kind in ((tower, (1, 224, 224, 3), "float32"), (text, (1, 77), "int32")):
        x = jax.ShapeDtypeStruct(shape, kind)
        shapes = jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x, train=False), x)
        found += sum(p.size for p in jax.tree.leaves(shapes["params"]))
    assert found == parameters


def test_where_the_text_is_read():
    """At the last token that is not padding, though 0 stands within; or at the first of the highest ids."""
    tokens = jnp.array([[18, 0, 3, 2, 0, 0], [18, 19, 4, 19, 0, 0]])
    last, highest = (text_transformer.make(**TEXT, read=read) for read in ("last", "highest"))
    variables = randomised(last, tokens)

    def changes(model, row, place):
        other = tokens.at[row, place].set(5)
        return not np.allclose(
            features(model, variables, tokens)[row], features(model, variables, other)[row], atol=1e-5
        )

    # Attention is causal: what comes after the place that is read cannot matter.
    assert [changes(last, 0, place) for place in range(1, 6)] == [True, True, True, True, True]
    assert [changes(highest, 0, place) for place in range(1, 6)] == [False] * 5
    assert [changes(highest, 1, place) for place in range(2, 6)] == [False] * 4
    assert changes(last, 1, 2)


def test_text_is_computed_in_bfloat16_and_again():
    tokens = jnp.array([[1, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0]])
    plain = text_transformer.make(**TEXT)
    variables = randomised(plain, tokens)
    half = features(text_transformer.make(**TEXT, dtype="bfloat16"), variables, tokens)
    exact = features(plain, variables, tokens)
    assert half.dtype == np.float32
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=0.05 * np.abs(exact).max())

    def gradients(model):
        def loss(params):
            return jnp.square(model.apply({"params": params}, tokens, train=True)["features"]).sum()

        return jax.jit(jax.grad(loss)), jax.make_jaxpr(jax.grad(loss))(variables["params"])

    (kept, _), (again, program) = (
        gradients(text_transformer.make(**TEXT, remat=r)) for r in ("none", "block")
    )
    assert "remat" in str(program)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        kept(variables["params"]),
        again(variables["params"]),
    )


def test_an_id_sums_its_gradient_in_float32():
    """600 equal captions of one id: a sum in bfloat16, of eight bits, would have stopped growing before."""
    model = text_transformer.make(**TEXT | {"layers": 1}, dtype="bfloat16")
    tokens = jnp.full((600, 2), 3)
    variables = randomised(model, tokens)

    @functools.partial(jax.jit, static_argnums=0)
    def of_id(count):
        def loss(params):
            return model.apply({"params": params}, tokens[:count], train=True)["features"][:, 0].sum()

        return jax.grad(loss)(variables["params"])["token"]["embedding"][3]

    np.testing.assert_allclose(of_id(600), 600 * of_id(1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip_resnet", {"variant": "RN50"}, "valid: rn50, rn101"),
        ("clip_resnet", {}, "needs a variant or its own stages"),
        ("clip_resnet", {"stages": (1, 0)}, "each stage is 1 or"),
        ("clip_resnet", {"stages": (1,), "width": 9}, "width is even"),
        ("clip_resnet", {"stages": (1,), "heads": 5}, "divides the 256 channels"),
        ("clip_resnet", {"stages": (1,), "norm": "per_device"}, "needs norm_rows"),
        ("clip_vit", {}, "give a variant (vit_b32, vit_b16, vit_l14)"),
        ("clip_vit", {"variant": "vit_s16"}, "valid: vit_b32"),
        ("clip_vit", {"variant": "vit_b16", "activation": "relu"}, "valid: 'gelu', 'quick_gelu'"),
        ("text_transformer", TEXT | {"read": "first"}, "valid: 'last', 'highest'"),
        ("text_transformer", TEXT | {"activation": "relu"}, "valid: 'gelu', 'quick_gelu'"),
        ("text_transformer", TEXT | {"heads": 3}, "heads divides width"),
        ("text_transformer", TEXT | {"layers": 0}, "all are 1 or above"),
        ("text_transformer", TEXT | {"attention_implementation": "cudnn"}, "takes bfloat16 or float16"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plugin.find("models", name, "make").make(**options)


def test_inputs_that_do_not_fit_are_named():
    resnet = clip_resnet.make(stages=(1, 1), width=8)
    variables = jax.eval_shape(lambda: resnet.init(jax.random.key(0), IMAGE, train=False))
    for model, given, x, message in [
        (resnet, variables, IMAGE[:, :7], "cannot take 7 x 32 px; give 8 px or more"),
        (resnet, variables, IMAGE[:, :24], "17 learned positions and is given 13 tokens"),
    ]:
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda v, model=model, x=x: model.apply(v, x, train=False), given)
    text = text_transformer.make(**TEXT)
    variables = randomised(text, jnp.ones((1, 7), jnp.int32))
    with pytest.raises(UserError, match="7 learned positions and is given 5 tokens"):
        features(text, variables, jnp.ones((1, 5), jnp.int32))


def test_quick_gelu():
    x = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(transformer.quick_gelu(jnp.array(x)), quick_gelu(x), rtol=1e-5, atol=1e-6)
