"""Encoders beside torchvision's and timm's with the same random weights.

Their BatchNorm's affine is random too, and the running statistics are those of a batch, disturbed by up to a fifth (any
others would let the activations of a deep network grow without bound).
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.models import resnet, resnet_torch, vit, vit_torch, wide_resnet
from tests import torch_peers
from tests.models.torch_models import chw, images, parameters, random_norms

pytestmark = pytest.mark.peers
CLOSE = 1e-4  # the largest difference of two logits
VITS = {
    "vit_s16": "vit_small_patch16_224",
    "vit_b16": "vit_base_patch16_224",
    "vit_b32": "vit_base_patch32_224",
    "vit_l16": "vit_large_patch16_224",
}


def torch_resnet(source: str, name: str):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    if source == "timm":
        return random_norms(torch_peers.timm().create_model(name, num_classes=10), 64)
    return random_norms(getattr(torch_peers.torchvision().models, name)(num_classes=10), 64)


def torch_vit(variant: str, size: int, **options):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch_peers.timm().create_model(VITS[variant], num_classes=10, img_size=size, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # timm's own are mostly zeros and ones
            if "norm" in name or "bias" in name or "cls" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@functools.partial(jax.jit, static_argnums=(0, 3))
def ours(model, variables, image, train=False):
    """Logits, new statistics."""
    if not train:
        return model.apply(variables, image, train=False)[0], {}
    (logits, _), updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
    return logits, updated["batch_stats"]


def compare(model, variables, theirs, image, train=False):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        expected = theirs.train(train)(chw(image)).numpy()
    logits, stats = ours(model, variables, image, train)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=CLOSE)
    assert expected.std() > 0.1  # the logits say something
    return stats


def variables_of(theirs, module):
    params, stats = module.from_torch(theirs.state_dict())
    return {"params": params, "batch_stats": stats} if stats else {"params": params}


@pytest.mark.parametrize("variant", [v for v in resnet.VARIANTS if v != "resnet10"])
def test_resnet_parameter_counts(variant):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        models = [
            getattr(torch_peers.torchvision().models, variant)(),
            torch_peers.timm().create_model(variant),
        ]
    assert {parameters(m) for m in models} == {count(resnet.make(variant=variant, num_classes=1000))}


@pytest.mark.parametrize("variant", VITS)
def test_vit_parameter_counts(variant):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        model = torch_peers.timm().create_model(VITS[variant])
    assert parameters(model) == count(vit.make(variant=variant, num_classes=1000))


def count(model) -> int:
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    return sum(p.size for p in jax.tree.leaves(shapes["params"]))


@pytest.mark.parametrize(
    ("source", "variant"),
    [
        ("torchvision", "resnet18"),
        ("timm", "resnet34"),
        ("torchvision", "resnet50"),
        ("timm", "resnet50"),
        ("timm", "resnet101"),
        ("torchvision", "resnet152"),
        ("torchvision", "wide_resnet50_2"),
    ],
)
def test_resnet_logits_and_running_statistics(source, variant):
    theirs = torch_resnet(source, variant)
    variables = variables_of(theirs, resnet_torch)
    model = resnet.make(variant=variant, num_classes=10)
    compare(model, variables, theirs, images(4, 64))
    stats = compare(model, variables, theirs, images(4, 64), train=True)
    _, expected = resnet_torch.from_torch(theirs.state_dict())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stats, expected)


def test_cifar_stem():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_peers.torchvision().models.resnet18(num_classes=10)
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False), torch.nn.Identity()
    random_norms(theirs, 32)
    variables = variables_of(theirs, resnet_torch)
    model = resnet.make(variant="resnet18", num_classes=10, stem="cifar")
    compare(model, variables, theirs, images(4, 32))
    compare(model, variables, theirs, images(4, 32), train=True)


def test_resnet50_gradients():
    """Of all parameters in training mode, in float64 on both sides.

    In float32, rounding puts one or the other of the million activations on the other side of zero, and its ReLU with
    it: torch's own float32 is 1e-3 to 2e-2 from its float64 by that, and so is ours.
    """
    torch = pytest.importorskip("torch")
    theirs = torch_resnet("torchvision", "resnet50")
    params, stats = resnet_torch.from_torch(theirs.state_dict())
    model, image = resnet.make(variant="resnet50", num_classes=10, dtype="float64"), images(8, 64)

    def loss(params, stats, image):
        variables = {"params": params, "batch_stats": stats}
        (logits, _), _ = model.apply(variables, image, train=True, mutable=["batch_stats"])
        return -(jax.nn.log_softmax(logits) * np.eye(8, 10)).sum() / 8

    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x.astype(np.float64), (params, stats, image))
        gradients = resnet_torch.to_torch(jax.jit(jax.grad(loss))(*wide), stats)
    theirs.double().train()
    torch.nn.functional.cross_entropy(theirs(chw(image).double()), torch.arange(8)).backward()
    exact = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert set(exact) == {name for name in gradients if "running" not in name}
    assert max(relative(gradients[name], value) for name, value in exact.items()) < 1e-6


def relative(value, exact) -> float:
    return np.linalg.norm(value - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("variant", "size", "options"),
    [
        ("vit_s16", 64, {}),
        ("vit_s16", 64, {"global_pool": "avg"}),
        ("vit_s16", 64, {"global_pool": "avg", "class_token": False}),
        ("vit_b32", 64, {}),
        ("vit_l16", 64, {}),
        ("vit_b16", 224, {}),
    ],
)
def test_vit_logits(variant, size, options):
    theirs = torch_vit(variant, size, **options)
    pool = "mean" if options else "token"
    model = vit.make(variant=variant, num_classes=10, pool=pool, class_token=options.get("class_token", True))
    compare(model, variables_of(theirs, vit_torch), theirs, images(2, size))


def test_vit_gradients():
    torch = pytest.importorskip("torch")
    theirs = torch_vit("vit_s16", 64).train()
    params, _ = vit_torch.from_torch(theirs.state_dict())
    model, image = vit.make(variant="vit_s16", num_classes=10), images(4, 64)

    def loss(params):
        logits, _ = model.apply({"params": params}, image, train=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].mean()

    gradients = vit_torch.to_torch(jax.jit(jax.grad(loss))(params), {})
    theirs.double()
    torch.nn.functional.cross_entropy(theirs(chw(image).double()), torch.arange(4)).backward()
    for name, parameter in theirs.named_parameters():
        exact = parameter.grad.numpy()
        if re.search("qkv.bias", name):  # the bias of the keys has the gradient zero
            width = len(exact) // 3
            np.testing.assert_allclose(gradients[name][width : 2 * width], 0, atol=1e-6)
        assert relative(gradients[name], exact) < 1e-4, name


def test_state_dicts_load_there_and_back():
    torch = pytest.importorskip("torch")
    for theirs, module in (
        (torch_resnet("timm", "resnet18"), resnet_torch),
        (torch_vit("vit_s16", 64), vit_torch),
    ):
        before = theirs.state_dict()
        back = module.to_torch(*module.from_torch(before))
        assert back.keys() == {name for name in before if "num_batches" not in name}
        for name, value in back.items():
            np.testing.assert_array_equal(value, before[name].numpy())
        theirs.load_state_dict({name: torch.tensor(v) for name, v in back.items()}, strict=True)


def test_vit_starts_with_timms_spread():
    timm = torch_peers.timm()
    model = vit.make(variant="vit_s16", num_classes=1000)
    params = jax.jit(lambda: model.init(jax.random.key(0), images(1, 64), train=False))()["params"]
    theirs = timm.create_model(VITS["vit_s16"], img_size=64).state_dict()
    for name, value in vit_torch.to_torch(params, {}).items():
        expected = theirs[name].numpy()
        assert value.std() == pytest.approx(expected.std(), rel=0.05 if value.size > 5000 else 0.2), name
        assert abs(value.mean() - expected.mean()) < 0.2 * expected.std() + 1e-9, name


def test_stochastic_depth_rates_are_timms():
    from nml_jax.models.drop_path import linear_rates

    timm = torch_peers.timm()
    for name, options in (("resnet50", {}), ("vit_small_patch16_224", {"img_size": 32})):
        model = timm.create_model(name, drop_path_rate=0.3, **options)
        blocks = [m for m in model.modules() if hasattr(m, "drop_path") or hasattr(m, "drop_path1")]
        paths = [getattr(b, "drop_path", getattr(b, "drop_path1", None)) for b in blocks]
        rates = [getattr(p, "drop_prob", 0.0) or 0.0 for p in paths]
        assert rates == pytest.approx(linear_rates(0.3, len(blocks)))


def test_wide_resnet():
    """WRN-16-2 of the paper, written down in torch."""
    torch = pytest.importorskip("torch")
    nn, F = torch.nn, torch.nn.functional
    torch.manual_seed(0)

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            inside, self.blocks = 16, nn.ModuleList()
            self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
                block = nn.ModuleDict(
                    {
                        "norm1": nn.BatchNorm2d(inside),
                        "conv1": nn.Conv2d(inside, width, 3, stride, 1, bias=False),
                        "norm2": nn.BatchNorm2d(width),
                        "conv2": nn.Conv2d(width, width, 3, 1, 1, bias=False),
                    }
                )
                if inside != width:
                    block["conv_shortcut"] = nn.Conv2d(inside, width, 1, stride, bias=False)
                self.blocks.append(block)
                inside = width
            self.norm, self.classifier = nn.BatchNorm2d(128), nn.Linear(128, 10)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                y = F.relu(block["norm1"](x))
                x = block["conv_shortcut"](y) if "conv_shortcut" in block else x
                x = x + block["conv2"](F.relu(block["norm2"](block["conv1"](y))))
            return self.classifier(F.relu(self.norm(x)).mean((2, 3)))

    theirs = random_norms(Wide(), 32)
    model = wide_resnet.make(depth=16, widen=2, num_classes=10)
    variables = jax.jit(lambda: model.init(jax.random.key(0), images(1, 32), train=False))()
    leaves = {
        "kernel": lambda m: m.weight.detach().numpy().T if m.weight.ndim == 2 else m.weight.detach().numpy(),
        "scale": lambda m: m.weight.detach().numpy(),
        "bias": lambda m: m.bias.detach().numpy(),
        "mean": lambda m: m.running_mean.numpy().copy(),
        "var": lambda m: m.running_var.numpy().copy(),
    }

    def value(path, array):
        *modules, leaf = [key.key for key in path][1:]
        found = theirs
        for name in modules:
            if name.startswith("stage"):
                stage, block = map(int, re.findall(r"\d+", name))
                found = theirs.blocks[2 * (stage - 1) + block - 1]
            else:
                found = (
                    found[name]
                    if isinstance(found, nn.ModuleDict)
                    else getattr(found, {"conv_stem": "stem"}.get(name, name))
                )
        result = leaves[leaf](found)
        result = result.transpose(2, 3, 1, 0) if result.ndim == 4 else result
        assert result.shape == array.shape
        return result

    variables = jax.tree_util.tree_map_with_path(value, variables)
    compare(model, variables, theirs, images(4, 32))
    stats = compare(model, variables, theirs, images(4, 32), train=True)
    np.testing.assert_allclose(stats["norm"]["var"], theirs.norm.running_var.numpy(), rtol=1e-4)
