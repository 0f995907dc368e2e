"""One contract for every model, and the parameter counts of the published architectures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.core import plugin
from nml_jax.core.errors import UserError
from nml_jax.models import resnet, text_transformer

SMALL = {
    "resnet": {"stages": (1, 1), "width": 8, "stem": "half"},
    "text_transformer": {"vocab_size": 20, "width": 16, "layers": 2, "heads": 2},
}


def count(tree) -> int:
    return sum(p.size for p in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", plugin.names("models", "make"))
def test_contract(name):
    module = plugin.find("models", name, "make")
    if module.ENCODES == "image":
        model = module.make(**SMALL[name], num_classes=5)
        image = jnp.ones((3, 32, 32, 3))
        variables = model.init(jax.random.key(0), image, train=True)
        (logits, out), _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        assert logits.shape == (3, 5)
        assert out["features"].dtype == jnp.float32
        without = module.make(**SMALL[name])
        none, same = without.apply(variables, image, train=False)
        assert none is None
        np.testing.assert_array_equal(
            same["features"], model.apply(variables, image, train=False)[1]["features"]
        )
    else:
        model = module.make(**SMALL[name], project=7)
        tokens = jnp.array([[1, 5, 2, 0, 0], [1, 2, 0, 0, 0]])
        variables = model.init(jax.random.key(0), tokens, train=False)
        assert model.apply(variables, tokens, train=False)["features"].shape == (2, 7)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("variant", "parameters"),
    # torchvision's own counts, with 1000 classes
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160)],
)
def test_parameter_counts(variant, parameters):
    model = resnet.make(variant=variant, num_classes=1000)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=True), image)
    assert count(shapes["params"]) == parameters


def test_text_is_read_at_its_last_token_and_causally():
    """Padding is after the read-out, so neither its amount nor what is learned of it can matter."""
    model = text_transformer.make(**SMALL["text_transformer"], project=4)
    tokens = jnp.array([[1, 5, 6, 2, 0, 0]])
    variables = model.init(jax.random.key(0), tokens, train=False)

    def features(variables, tokens):
        return model.apply(variables, jnp.array(tokens), train=False)["features"]

    before = features(variables, tokens)
    changed = jax.tree.map(lambda p: p, variables)
    changed["params"]["token"]["embedding"] = variables["params"]["token"]["embedding"].at[0].add(5.0)
    np.testing.assert_allclose(features(changed, tokens), before, atol=1e-6)
    assert not np.allclose(features(variables, [[1, 6, 5, 2, 0, 0]]), before)


def test_wrong_options_are_named():
    with pytest.raises(UserError, match="valid: resnet10, resnet18"):
        resnet.make(variant="resnet20")
    with pytest.raises(UserError, match="needs a variant or its own stages"):
        resnet.make()
