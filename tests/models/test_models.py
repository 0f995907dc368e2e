"""One contract for every model, the parameter counts of the published architectures, and what the options do."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from nml_jax.core import mesh as meshes
from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.models import text_transformer, vit

SMALL = {
    "clip_resnet": {"stages": (1, 1), "width": 8},
    "clip_vit": {"width": 16, "layers": 2, "heads": 2, "patch": 8},
    "resnet": {"stages": (1, 1), "width": 8, "stem": "half"},
    "text_transformer": {"vocab_size": 20, "width": 16, "layers": 2, "heads": 2},
    "vit": {"width": 16, "layers": 2, "heads": 2, "patch": 8},
    "wide_resnet": {"depth": 10, "widen": 1},
}
# What the backward and the computation may change without changing the numbers, or what they draw.
STOCHASTIC = {
    "clip_resnet": {},
    "clip_vit": {"drop_path": 0.5, "dropout": 0.5},
    "resnet": {"drop_path": 0.5},
    "vit": {"drop_path": 0.5, "dropout": 0.5},
    "wide_resnet": {"drop_path": 0.5, "drop_rate": 0.5},
}
IMAGE = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)


def encoders(kind: str) -> list[str]:
    modules = {name: plugin.find("models", name, "make") for name in plugin.names("models", "make")}
    return [name for name, module in modules.items() if kind == module.ENCODES]


def small(name, **options):
    return plugin.find("models", name, "make").make(**SMALL[name], **options)


@functools.lru_cache
def initial(model, train=False):
    return jax.jit(model.init, static_argnames="train")(jax.random.key(0), IMAGE, train=train)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(model, variables, image=IMAGE):
    return model.apply(variables, image, train=False)


@functools.partial(jax.jit, static_argnums=0)
def step(model, variables, rng):
    """The value of a loss in training, its gradients and the new statistics."""
    params, stats = variables["params"], variables.get("batch_stats", {})

    def loss(params):
        (logits, _), updated = model.apply(
            {"params": params, "batch_stats": stats},
            IMAGE,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return jnp.square(logits - 1).mean(), updated.get("batch_stats", {})

    return jax.value_and_grad(loss, has_aux=True)(params)


def count(tree) -> int:
    return sum(p.size for p in jax.tree.leaves(tree))


def test_every_model_is_tested():
    assert set(SMALL) == set(plugin.names("models", "make"))
    assert set(STOCHASTIC) == set(encoders("image"))


@pytest.mark.parametrize("name", encoders("image"))
def test_image_encoder(name):
    model = small(name, num_classes=5)
    variables = initial(model)
    for a, b in zip(*(jax.tree.leaves(v) for v in (variables, initial(model, train=True))), strict=True):
        np.testing.assert_array_equal(a, b)
    logits, out = evaluate(model, variables)
    assert logits.shape == (4, 5)
    none, same = evaluate(small(name), variables)
    assert none is None
    np.testing.assert_array_equal(same["features"], out["features"])
    projected = small(name, project=7)
    _, embedding = jax.eval_shape(lambda: projected.apply(initial(projected), IMAGE, train=False))
    assert embedding["features"].shape == (4, 7)


@pytest.mark.parametrize("name", encoders("image"))
def test_bfloat16_computes_and_float32_is_kept(name):
    model = small(name, num_classes=5, dtype="bfloat16")
    variables = initial(model)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, out = evaluate(model, variables)
    assert logits.dtype == out["features"].dtype == jnp.float32
    exact = evaluate(small(name, num_classes=5), variables)[1]["features"]
    np.testing.assert_allclose(out["features"], exact, atol=0.05 * np.abs(exact).max())
    assert not np.array_equal(out["features"], exact)
    (_, stats), grads = step(model, variables, jax.random.key(1))
    assert {x.dtype for x in jax.tree.leaves((stats, grads))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", encoders("image"))
def test_random_layers_and_remat(name):
    """Recomputing the blocks changes no number, also where they draw; what is drawn depends on the key."""
    kept, again = (small(name, num_classes=5, remat=r, **STOCHASTIC[name]) for r in ("none", "block"))
    variables = initial(kept)
    (loss, stats), grads = step(kept, variables, jax.random.key(1))
    other = step(again, variables, jax.random.key(1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ((loss, stats), grads), other
    )
    assert (step(kept, variables, jax.random.key(2))[0][0] != loss) == bool(STOCHASTIC[name])
    for model, found in ((kept, False), (again, True)):
        program = jax.make_jaxpr(step, static_argnums=0)(model, variables, jax.random.key(1))
        assert ("remat" in str(program)) == found
    # None of it in evaluation, and no layer needs a key then.
    plain = evaluate(small(name, num_classes=5), variables)[0]
    np.testing.assert_array_equal(evaluate(again, variables)[0], plain)


@pytest.mark.parametrize("name", encoders("image"))
def test_eight_shares_of_a_batch_give_what_the_batch_gives(name):
    """In a shard_map over the batch: logits in training and new statistics, with everything random switched on."""
    model = small(name, num_classes=5, **STOCHASTIC[name])
    image, variables = np.concatenate([IMAGE, IMAGE[::-1]]), initial(model)

    def train(variables, image):
        rngs = {"dropout": jax.random.key(3)}
        (logits, _), updated = model.apply(variables, image, train=True, mutable=["batch_stats"], rngs=rngs)
        return logits, updated

    expected = jax.jit(train)(variables, image)
    whole, shares = PartitionSpec(), PartitionSpec(meshes.AXES)
    with jax.set_mesh(meshes.make(2)):
        shared = jax.shard_map(train, in_specs=(whole, shares), out_specs=(shares, whole))
        result = jax.jit(shared)(variables, image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result, expected)


@pytest.mark.parametrize("name", encoders("text"))
def test_text_encoder(name):
    model = small(name, project=7)
    tokens = jnp.array([[1, 5, 2, 0, 0], [1, 2, 0, 0, 0]])
    variables = jax.jit(lambda: model.init(jax.random.key(0), tokens, train=False))()
    assert evaluate(model, variables, tokens)["features"].shape == (2, 7)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("name", "variant", "classes", "parameters"),
    [
        # torchvision's own counts
        ("resnet", "resnet18", 1000, 11_689_512),
        ("resnet", "resnet34", 1000, 21_797_672),
        ("resnet", "resnet50", 1000, 25_557_032),
        ("resnet", "resnet101", 1000, 44_549_160),
        ("resnet", "resnet152", 1000, 60_192_808),
        ("resnet", "wide_resnet50_2", 1000, 68_883_240),
        ("resnet", "wide_resnet101_2", 1000, 126_886_696),
        ("vit", "vit_b16", 1000, 86_567_656),
        ("vit", "vit_b32", 1000, 88_224_232),
        ("vit", "vit_l16", 1000, 304_326_632),
        # the paper's: 36.5 and 2.2 million
        ("wide_resnet", "wrn28_10", 10, 36_479_194),
        ("wide_resnet", "wrn40_2", 10, 2_243_546),
    ],
)
def test_parameter_counts(name, variant, classes, parameters):
    model = plugin.find("models", name, "make").make(variant=variant, num_classes=classes)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    assert count(shapes["params"]) == parameters


def test_text_is_read_at_its_last_token_and_causally():
    """Padding is after the read-out, so neither its amount nor what is learned of it can matter."""
    model = text_transformer.make(**SMALL["text_transformer"], project=4)
    tokens = jnp.array([[1, 5, 6, 2, 0, 0]])
    variables = jax.jit(lambda: model.init(jax.random.key(0), tokens, train=False))()

    def features(variables, tokens):
        return evaluate(model, variables, jnp.array(tokens))["features"]

    before = features(variables, tokens)
    changed = jax.tree.map(lambda p: p, variables)
    changed["params"]["token"]["embedding"] = variables["params"]["token"]["embedding"].at[0].add(5.0)
    np.testing.assert_allclose(features(changed, tokens), before, atol=1e-6)
    assert not np.allclose(features(variables, [[1, 6, 5, 2, 0, 0]]), before)


def test_zero_init_last_starts_each_block_as_its_shortcut():
    model = small("resnet", zero_init_last=True)
    params = initial(model)["params"]
    assert not params["stage1_block1"]["norm2"]["scale"].any()
    assert params["stage1_block1"]["norm1"]["scale"].all()
    x = model.apply(initial(model), IMAGE, train=False, capture_intermediates=True)[1]
    stem, block = (x["intermediates"][n]["__call__"][0] for n in ("norm_stem", "stage1_block1"))
    np.testing.assert_array_equal(block, np.maximum(stem, 0))


def test_per_device_batch_norm_sees_its_rows_alone():
    """Two groups of two samples: each is normalised as if alone."""
    model = small("resnet", norm="per_device", norm_rows=2)
    variables = initial(model)

    def features(model, image):
        return model.apply(variables, image, train=True, mutable=["batch_stats"])[0][1]["features"]

    halves = [features(small("resnet"), IMAGE[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(features(model, IMAGE), np.concatenate(halves), atol=1e-5)
    assert not np.allclose(features(small("resnet"), IMAGE), np.concatenate(halves), atol=1e-2)


def test_fixed_positions_are_those_of_the_formula():
    """Position (row 2, column 1) of 3 x 2, width 8: frequencies 1 and 1/10000; x before y, sine before cosine."""
    table = vit.sincos2d(3, 2, 8)
    x, y = np.array([1, 1e-4]), np.array([2, 2e-4])
    np.testing.assert_allclose(
        table[5], np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)]), rtol=1e-6
    )
    model = small("vit", pool="mean", class_token=False, position="sincos2d")
    variables = initial(model)
    assert not {"position", "class_token"} & variables["params"].keys()
    wide = np.concatenate([IMAGE, IMAGE], axis=2)  # fixed positions exist for any size
    assert evaluate(model, variables, wide)[1]["features"].shape == (4, 16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {"variant": "resnet20"}, "valid: resnet10, resnet18"),
        ("resnet", {}, "needs a variant or its own stages"),
        ("resnet", {"stages": (1,), "stem": "tiny"}, "valid: imagenet, cifar, half"),
        ("resnet", {"stages": (1, 0)}, "each stage are 1 or above"),
        ("resnet", {"stages": (1,), "widen": 2}, "only bottlenecks widen"),
        ("resnet", {"stages": (1,), "norm": "layer"}, "valid: sync, per_device"),
        ("resnet", {"stages": (1,), "norm": "per_device"}, "needs norm_rows"),
        ("resnet", {"stages": (1,), "norm_rows": 4}, "'sync' takes none"),
        ("resnet", {"stages": (1,), "remat": "all"}, "valid: none, block"),
        ("resnet", {"stages": (1,), "drop_path": 1.0}, "0 <= drop_path < 1"),
        ("wide_resnet", {"variant": "wrn10_2"}, "valid: wrn16_8"),
        ("wide_resnet", {"depth": 27}, "depth is 6 n"),
        ("vit", {}, "give a variant"),
        ("vit", {"variant": "vit_b8"}, "valid: vit_ti16"),
        ("vit", {"variant": "vit_b16", "pool": "avg"}, "valid: 'token', 'mean'"),
        ("vit", {"variant": "vit_b16", "class_token": False}, "pool='mean'"),
        ("vit", {"variant": "vit_b16", "attention_implementation": "flash"}, "valid: '', 'xla', 'cudnn'"),
        ("vit", {"variant": "vit_b16", "attention_implementation": "cudnn"}, "takes bfloat16 or float16"),
        ("vit", {"width": 30, "layers": 1, "heads": 4, "patch": 8}, "that heads divides"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        plugin.find("models", name, "make").make(**options)


@pytest.mark.parametrize(("option", "asked"), [("", None), ("xla", "xla"), ("cudnn", "cudnn")])
@pytest.mark.parametrize("name", ["vit", "clip_vit", "text_transformer"])
def test_attention_implementation_is_handed_on(name, option, asked, monkeypatch):
    """cuDNN is on GPUs only: XLA computes it here, whichever is asked for."""
    text = name == "text_transformer"
    model = small(name, attention_implementation=option, dtype="bfloat16", **({"project": 4} if text else {}))
    seen, attention = [], jax.nn.dot_product_attention

    def spy(*arrays, is_causal, implementation):
        seen.append((is_causal, implementation))
        return attention(*arrays, is_causal=is_causal, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    x = jnp.ones((1, 5), jnp.int32) if text else IMAGE
    jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    assert seen == [(text, asked)] * 2


def test_images_that_do_not_fit_a_vision_transformer_are_named():
    model = small("vit")
    variables = initial(model)
    with pytest.raises(UserError, match="multiples of 8"):
        evaluate(model, variables, IMAGE[:, :30])
    with pytest.raises(UserError, match="17 learned positions and is given 13 tokens"):
        evaluate(model, variables, IMAGE[:, :24])
