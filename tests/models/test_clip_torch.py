"""CLIP weights in OpenAI's and open_clip's names, without torch."""

import functools
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.core.errors import UserError
from nml_jax.models import clip_resnet, clip_torch, clip_vit, text_transformer, torch_file


@functools.lru_cache
def trees(name):
    """Small towers with random numbers in every array."""
    image = {
        "resnet": clip_resnet.make(stages=(1, 2), width=8, project=6),
        "vit": clip_vit.make(width=16, layers=2, heads=2, patch=8, project=6),
    }[name]
    text = text_transformer.make(vocab_size=20, project=6, width=16, layers=2, heads=2)
    inputs = (jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 7), jnp.int32))
    rng, variables = np.random.default_rng(0), []
    for model, x in zip((image, text), inputs, strict=True):
        shapes = jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x, train=False), x)
        variables.append(jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes))
    image = (variables[0]["params"], variables[0].get("batch_stats", {}))
    return {"image": image, "text": variables[1]["params"], "logit_scale": np.float32(2.6)}


@pytest.mark.parametrize("prefix", ["", "text."])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_there_and_back(name, prefix):
    for given in (trees(name), trees(name) | {"logit_bias": np.float32(-10)}):
        back = clip_torch.from_torch(clip_torch.to_torch(given, prefix=prefix))
        assert jax.tree.structure(back) == jax.tree.structure(given)
        jax.tree.map(np.testing.assert_array_equal, back, given)


def test_names_and_layouts_are_torchs():
    (params, stats), text = trees("resnet")["image"], trees("resnet")["text"]
    tensors = clip_torch.to_torch(trees("resnet"))
    assert tensors["visual.conv1.weight"].shape == (4, 3, 3, 3)
    kernel = params["stage2_block1"]["conv_shortcut"]["kernel"]
    np.testing.assert_array_equal(
        tensors["visual.layer2.0.downsample.0.weight"][5, 2, 0, 0], kernel[0, 0, 2, 5]
    )
    np.testing.assert_array_equal(
        tensors["visual.layer2.1.bn3.running_var"], stats["stage2_block2"]["norm3"]["var"]
    )
    np.testing.assert_array_equal(tensors["visual.attnpool.c_proj.weight"], params["pool"]["out"]["kernel"].T)
    assert tensors["visual.attnpool.positional_embedding"].shape == (17, 64)
    np.testing.assert_array_equal(tensors["text_projection"], text["project"]["kernel"])
    assert tensors["transformer.resblocks.1.attn.in_proj_weight"].shape == (48, 16)
    params = trees("vit")["image"][0]
    tensors = clip_torch.to_torch(trees("vit"), prefix="text.")
    assert tensors["visual.positional_embedding"].shape == (17, 16)
    np.testing.assert_array_equal(tensors["visual.proj"], params["project"]["kernel"])
    np.testing.assert_array_equal(
        tensors["visual.transformer.resblocks.0.mlp.c_fc.weight"], params["block1"]["fc1"]["kernel"].T
    )
    assert tensors["text.token_embedding.weight"].shape == (20, 16)
    assert tensors["logit_scale"].shape == ()


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_wrong_tensors_are_named(name):
    good = clip_torch.to_torch(trees(name))
    for tensor in ("visual.conv1.weight", "positional_embedding", "ln_final.bias", "logit_scale"):
        with pytest.raises(UserError, match=re.escape(tensor)):
            clip_torch.from_torch({n: x for n, x in good.items() if n != tensor})
    for extra, message in [
        ({"visual.extra": np.zeros(2)}, "unexpected: visual.extra"),
        ({"extra": np.zeros(2)}, "unexpected: extra"),
        ({"ln_final.bias": np.zeros(99)}, "of another shape: ln_final.bias (99,) in place of (16,)"),
        ({"text_projection": np.zeros(99)}, "text_projection (2 axes) is missing"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            clip_torch.from_torch(good | extra)
    facts = {"input_resolution": np.array(32), "context_length": np.array(7), "vocab_size": np.array(20)}
    clip_torch.from_torch(good | facts)
    with pytest.raises(UserError, match="logit_scale is missing"):
        clip_torch.from_torch({})


def test_parameters_without_a_name_there_are_named():
    params, stats = trees("vit")["image"]
    extra = params | {"classifier": {"kernel": np.zeros((6, 2))}}
    with pytest.raises(UserError, match="without a name there: params/classifier/kernel"):
        clip_torch.to_torch(trees("vit") | {"image": (extra, stats)})


def test_torchscript_archives_say_how_to_convert_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "RN50.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"RN50/{name}", b"")
    with pytest.raises(
        UserError, match=r"TorchScript archive.*torch.jit.load\('.*RN50.pt'.*'RN50_state.pth'"
    ):
        torch_file.read(tmp_path / "RN50.pt")
