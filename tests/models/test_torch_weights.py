"""Torch's names for our weights, without torch where it is not needed, and weights files."""

import functools
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from nml_jax.core.errors import UserError
from nml_jax.models import resnet, resnet_torch, torch_file, vit, vit_torch

IMAGE = np.zeros((1, 32, 32, 3), np.float32)


@functools.lru_cache
def case(name):
    """A map and the variables of a small model with random numbers in every array."""
    module, model = {
        "basic": (resnet_torch, resnet.make(stages=(1, 2), width=4, num_classes=3)),
        "wide": (resnet_torch, resnet.make(stages=(1, 1), bottleneck=True, widen=2, width=4, stem="cifar")),
        "token": (vit_torch, vit.make(width=8, layers=2, heads=2, patch=8, num_classes=3)),
        "mean": (vit_torch, vit.make(width=8, layers=1, heads=2, patch=8, pool="mean", class_token=False)),
    }[name]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGE, train=False))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    return module, variables["params"], variables.get("batch_stats", {})


@pytest.mark.parametrize("name", ["basic", "wide", "token", "mean"])
def test_there_and_back(name):
    module, params, stats = case(name)
    back = module.from_torch(module.to_torch(params, stats))
    assert jax.tree.structure(back) == jax.tree.structure((params, stats))
    jax.tree.map(np.testing.assert_array_equal, back, (params, stats))


def test_names_and_layouts_are_torchs():
    module, params, stats = case("basic")
    tensors = module.to_torch(params, stats)
    assert tensors["conv1.weight"].shape == (4, 3, 7, 7)
    kernel = params["stage2_block1"]["conv_shortcut"]["kernel"]
    np.testing.assert_array_equal(tensors["layer2.0.downsample.0.weight"][5, 2, 0, 0], kernel[0, 0, 2, 5])
    np.testing.assert_array_equal(tensors["fc.weight"], params["classifier"]["kernel"].T)
    np.testing.assert_array_equal(tensors["layer2.1.bn2.running_var"], stats["stage2_block2"]["norm2"]["var"])
    module, params, stats = case("token")
    tensors = module.to_torch(params, stats)
    assert (tensors["pos_embed"].shape, tensors["cls_token"].shape) == ((1, 17, 8), (1, 1, 8))
    assert tensors["blocks.1.attn.qkv.weight"].shape == (24, 8)


@pytest.mark.parametrize("name", ["basic", "wide", "token", "mean"])
def test_wrong_tensors_are_named(name):
    module, params, stats = case(name)
    good = module.to_torch(params, stats)
    last = list(good)[-1]
    for bad, message in [
        ({n: t for n, t in good.items() if n != last}, f"missing: {last}"),
        (good | {"extra.weight": np.zeros(2)}, "unexpected: extra.weight"),
        (good | {last: np.zeros(99, np.float32)}, f"of another shape: {last} (99,) in place of"),
        ({}, "is missing"),
    ]:
        with pytest.raises(UserError, match=re.escape(message)):
            module.from_torch(bad)
    module.from_torch(good | {"bn1.num_batches_tracked": np.array(7)})
    with pytest.raises(UserError, match="without a name there: params/project/kernel"):
        module.to_torch({**params, "project": {"kernel": np.zeros((2, 2))}}, stats)


def test_a_shortcut_that_the_network_has_not_is_unexpected():
    module, params, stats = case("basic")
    extra = {"layer2.1.downsample.0.weight": np.zeros((8, 8, 1, 1), np.float32)}
    with pytest.raises(UserError, match=r"unexpected: layer2.1.downsample.0.weight"):
        module.from_torch(module.to_torch(params, stats) | extra)


def test_parameters_without_a_torch_counterpart_are_named():
    _, params, _ = case("token")
    with pytest.raises(UserError, match="missing: params/position"):
        vit_torch.to_torch({n: p for n, p in params.items() if n != "position"}, {})


def test_safetensors_files(tmp_path):
    tensors = {"module.a": np.arange(3.0), "b": np.ones((2, 2), np.float16)}
    save_file(tensors, tmp_path / "x.safetensors")
    read = torch_file.read(tmp_path / "x.safetensors")
    assert read.keys() == {"a", "b"}
    np.testing.assert_array_equal(read["a"], np.arange(3.0))
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(whole[:-5])
    (tmp_path / "x.onnx").write_bytes(whole)
    for name, message in [
        ("torn.safetensors", "not a complete"),
        ("none.pth", "no file"),
        ("x.onnx", "valid endings: .safetensors, .pth"),
    ]:
        with pytest.raises(UserError, match=message):
            torch_file.read(tmp_path / name)


@pytest.mark.peers
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{n}": t for n, t in state.items()}, "optimizer": {}},
    ],
)
def test_torch_files(tmp_path, wrap):
    torch = pytest.importorskip("torch")
    state = {"w": torch.randn(2, 3), "half": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(wrap(state), tmp_path / "model.pth.tar")
    read = torch_file.read(tmp_path / "model.pth.tar")
    np.testing.assert_array_equal(read["w"], state["w"].numpy())
    assert read["half"].dtype == np.float32


@pytest.mark.peers
def test_torch_files_that_hold_something_else(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")  # a pickled class: would run its code
    (tmp_path / "torn.pt").write_bytes((tmp_path / "epoch.pt").read_bytes()[:-100])
    for name, message in [("epoch", "no state dict"), ("module", "cannot read"), ("torn", "cannot read")]:
        with pytest.raises(UserError, match=message):
            torch_file.read(tmp_path / f"{name}.pt")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(UserError, match="install torch, or convert"):
        torch_file.read(tmp_path / "epoch.pt")
