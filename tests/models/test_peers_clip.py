"""CLIP's towers beside open_clip's with the same random weights: embeddings, logits, gradients, names, spread."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nml_jax.models import clip_resnet, clip_torch, clip_vit, text_transformer
from tests import torch_peers
from tests.models.torch_models import chw, images, parameters, random_norms

pytestmark = pytest.mark.peers
CLOSE = 1e-4  # the largest difference of two values of an embedding, and of two logits
SCALE = 30.0  # of the logits
# open_clip's name -> our image tower
TOWERS = {
    "RN50": (clip_resnet, {"variant": "rn50", "project": 1024}),
    "RN101": (clip_resnet, {"variant": "rn101", "project": 512}),
    "ViT-B-32": (clip_vit, {"variant": "vit_b32", "project": 512}),
    "ViT-B-16": (clip_vit, {"variant": "vit_b16", "project": 512}),
    "ViT-L-14": (clip_vit, {"variant": "vit_l14", "project": 768}),
    "ViT-B-32-quickgelu": (clip_vit, {"variant": "vit_b32", "project": 512, "activation": "quick_gelu"}),
}


def torch_clip(
    name: str,
    size: int = 224,
    layers: int | list[int] = 0,
    text_layers: int = 0,
    custom: bool = False,
    **text,
):
    """open_clip's `name` as it creates it, for images of `size` px, with the first layers alone where asked."""
    open_clip = torch_peers.open_clip()
    config = open_clip.get_model_config(name)
    config["vision_cfg"]["image_size"] = size
    config["text_cfg"] |= text
    if layers:
        config["vision_cfg"]["layers"] = layers
    if text_layers:
        config["text_cfg"]["layers"] = text_layers
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def trained(model, size: int):
    """The torch model with what starts at zero or one as a trained network's could be."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        if hasattr(model.visual, "attnpool"):
            # Nothing normalises what is pooled: the projections and positions follow its size, as in training.
            random_norms(model.visual, size)
            seen, pool = [], model.visual.attnpool
            with model.visual.layer4.register_forward_hook(lambda *call: seen.append(call[2].std())):
                model.visual(chw(images(4, size)))
            pool.positional_embedding.mul_(seen[0] * pool.positional_embedding.shape[1] ** 0.5)
            for projection in (pool.q_proj, pool.k_proj, pool.v_proj):
                projection.weight.div_(seen[0])
        for name, parameter in model.named_parameters():
            batch_norm = name.startswith("visual.") and (".bn" in name or ".downsample" in name)
            if ".ln_" in name or "ln_final" in name or ("bias" in name and not batch_norm):
                parameter.add_(0.2 * torch.randn_like(parameter))
        for table in (model.token_embedding.weight, model.positional_embedding):
            table.mul_(20)  # as large as what the blocks add to them
        model.logit_scale.fill_(math.log(SCALE))
    return model.eval()


def our_towers(name: str, theirs, **options):
    module, image = TOWERS[name]
    layers, visual, shape = (
        len(theirs.transformer.resblocks),
        theirs.visual,
        module.VARIANTS[image["variant"]],
    )
    if module is clip_resnet:
        depth = tuple(len(getattr(visual, f"layer{stage}")) for stage in (1, 2, 3, 4))
        own = {"stages": depth}
    else:
        width, _, heads, patch = shape
        depth = len(visual.transformer.resblocks)
        own = {"width": width, "layers": depth, "heads": heads, "patch": patch}
    if depth not in (shape, shape[1]):  # the first layers alone
        image = image | {"variant": ""} | own
    width = theirs.ln_final.weight.shape[0]
    text = {
        "vocab_size": theirs.vocab_size,
        "project": image["project"],
        "width": width,
        "heads": width // 64,
    }
    text |= {"layers": layers, "read": "highest", "activation": image.get("activation", "gelu")}
    return module.make(**image, **options), text_transformer.make(**text)


def captions(count: int, length: int = 77, vocab_size: int = 49408) -> np.ndarray:
    """Random ids between start and end, of random lengths, with the padding's id among them."""
    rng, tokens = np.random.default_rng(0), np.zeros((count, length), np.int32)
    for row, words in zip(tokens, rng.integers(1, length - 2, count), strict=True):
        row[: words + 2] = [vocab_size - 2, *rng.integers(0, vocab_size - 2, words), vocab_size - 1]
    return tokens


@functools.partial(jax.jit, static_argnums=(0, 3))
def embed_image(model, variables, image, train=False):
    if not train:
        return model.apply(variables, image, train=False)[1]["features"], {}
    (_, out), updated = model.apply(variables, image, train=True, mutable=["batch_stats"])
    return out["features"], updated["batch_stats"]


@functools.partial(jax.jit, static_argnums=0)
def embed_text(model, params, tokens):
    return model.apply({"params": params}, tokens, train=False)["features"]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def compare(name, theirs, size, count=4, **options):
    torch = pytest.importorskip("torch")
    image_model, text_model = our_towers(name, theirs, **options)
    trees = clip_torch.from_torch(theirs.state_dict())
    params, stats = trees["image"]
    variables = {"params": params, "batch_stats": stats} if stats else {"params": params}
    image, tokens = images(count, size), captions(count)
    with torch.no_grad():
        expected = [theirs.encode_image(chw(image)).numpy(), theirs.encode_text(torch.tensor(tokens)).numpy()]
        logits = theirs.get_logits(chw(image), torch.tensor(tokens))[0].numpy()
    found = [np.asarray(embed_image(image_model, variables, image)[0])]
    found.append(np.asarray(embed_text(text_model, trees["text"], tokens)))
    for ours, exact in zip(found, expected, strict=True):
        assert exact.std(axis=0).min() > 1e-3  # the embeddings say something, and not the same of all
        assert exact.std() > 0.1
        np.testing.assert_allclose(ours, exact, rtol=0, atol=CLOSE)
    cosines = unit(found[0]) @ unit(found[1]).T
    assert logits.std() > 0.1
    np.testing.assert_allclose(np.exp(trees["logit_scale"]) * cosines, logits, rtol=0, atol=CLOSE)
    return image_model, variables


@pytest.mark.parametrize("name", TOWERS)
def test_parameter_counts(name):
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = torch_clip(name)
    inputs = (jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32), jax.ShapeDtypeStruct((1, 77), jnp.int32))
    ours = 1  # the scale
    for model, x in zip(our_towers(name, theirs), inputs, strict=True):
        shapes = jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x, train=False), x)
        ours += sum(p.size for p in jax.tree.leaves(shapes["params"]))
    assert ours == parameters(theirs)


@pytest.mark.parametrize(
    ("name", "size", "cut"),
    [
        ("RN50", 64, {"text_layers": 2}),
        ("RN101", 64, {"text_layers": 1}),
        ("ViT-B-16", 64, {"text_layers": 1}),
        ("ViT-L-14", 56, {"layers": 4, "text_layers": 2}),
        ("ViT-B-32-quickgelu", 64, {"layers": 3, "text_layers": 3}),
    ],
)
def test_embeddings_and_logits(name, size, cut):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    compare(name, trained(torch_clip(name, size, **cut), size), size)


def test_a_whole_model_as_created():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = torch_peers.open_clip().create_model("ViT-B-32", pretrained=None)
    compare("ViT-B-32", trained(theirs, 224), 224)


def test_rn50_in_training():
    """The statistics of the batch, and how the running ones move."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    theirs = trained(torch_clip("RN50", 64, text_layers=1), 64)
    params, stats = clip_torch.from_torch(theirs.state_dict())["image"]
    model, image = clip_resnet.make(variant="rn50", project=1024, remat="block"), images(8, 64, seed=2)
    with torch.no_grad():
        expected = theirs.train().encode_image(chw(image)).numpy()
    ours, new = embed_image(model, {"params": params, "batch_stats": stats}, image, True)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=CLOSE)
    _, exact = clip_torch.from_torch(theirs.state_dict())["image"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), new, exact)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), stats, exact)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_gradients_of_both_towers():
    """Of the contrastive loss in training mode, all parameters, in float64 (see test_resnet50_gradients)."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = torch_peers.open_clip().get_model_config("RN50")
    config["vision_cfg"] |= {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16}
    config["text_cfg"] |= {"layers": 2, "width": 64, "heads": 4, "vocab_size": 50, "context_length": 12}
    config["embed_dim"] = 32
    theirs = trained(torch_peers.open_clip().CLIP(**config), 64).double().train()
    trees = clip_torch.from_torch(theirs.state_dict())
    image_model = clip_resnet.make(stages=(1, 2, 1, 1), width=16, project=32, dtype="float64")
    text_model = text_transformer.make(
        vocab_size=50, project=32, width=64, layers=2, heads=4, read="highest", dtype="float64"
    )
    image, tokens = images(6, 64), captions(6, 12, 50)

    def loss(params, stats, image):
        variables = {"params": params["image"], "batch_stats": stats}
        (_, out), _ = image_model.apply(variables, image, train=True, mutable=["batch_stats"])
        text = text_model.apply({"params": params["text"]}, tokens, train=True)["features"]
        a, b = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (out["features"], text))
        logits = jnp.exp(params["logit_scale"]) * a @ b.T
        return -sum(jnp.diag(jax.nn.log_softmax(x)).mean() for x in (logits, logits.T)) / 2

    params, stats = trees["image"]
    with jax.enable_x64(True):
        inputs = ({"image": params, "text": trees["text"], "logit_scale": trees["logit_scale"]}, stats, image)
        ours = jax.jit(jax.grad(loss))(*jax.tree.map(lambda x: x.astype(np.float64), inputs))
    gradients = clip_torch.to_torch(ours | {"image": (ours["image"], stats)})
    logits = theirs.get_logits(chw(image).double(), torch.tensor(tokens))
    target = torch.arange(6)
    (sum(torch.nn.functional.cross_entropy(x, target) for x in logits) / 2).backward()
    for name, parameter in theirs.named_parameters():
        exact = parameter.grad.numpy()
        if name.endswith("k_proj.bias"):  # the bias of the keys has the gradient zero
            np.testing.assert_allclose(gradients[name], 0, atol=1e-6)
            continue
        assert np.linalg.norm(exact) > 1e-6, name
        error = np.linalg.norm(gradients[name] - exact) / np.linalg.norm(exact)
        assert error < 1e-4, name


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
@pytest.mark.parametrize("custom", [False, True])
def test_state_dicts_load_there_and_back(name, custom):
    torch = pytest.importorskip("torch")
    theirs = torch_clip(
        name, 64, text_layers=1, layers=[1, 1, 1, 2] if name == "RN50" else 1, custom=custom, vocab_size=300
    )
    before = theirs.state_dict()
    back = clip_torch.to_torch(clip_torch.from_torch(before), prefix="text." if custom else "")
    assert back.keys() == {name for name in before if "num_batches" not in name}
    for name, value in back.items():
        np.testing.assert_array_equal(value, before[name].numpy())
    theirs.load_state_dict({name: torch.tensor(v) for name, v in back.items()}, strict=True)


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_openai_files(name, tmp_path):
    """Half precision and facts among the weights, as OpenAI's; a TorchScript archive becomes a state dict as told."""
    torch = pytest.importorskip("torch")
    from nml_jax.models import torch_file

    theirs = torch_clip(name, 64, text_layers=1, layers=[1, 1, 1, 1] if name == "RN50" else 1, vocab_size=300)
    state = {n: x.half() if x.is_floating_point() else x for n, x in theirs.state_dict().items()}
    facts = {
        "input_resolution": torch.tensor(64),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(300),
    }
    torch.save(state | facts, tmp_path / "openai.pt")
    trees = clip_torch.from_torch(torch_file.read(tmp_path / "openai.pt"))
    assert {x.dtype for x in jax.tree.leaves(trees)} == {np.dtype("float32")}
    exact = clip_torch.from_torch(theirs.state_dict())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), trees, exact)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_archives_are_named(tmp_path):
    torch = pytest.importorskip("torch")
    from nml_jax.core.errors import UserError
    from nml_jax.models import torch_file

    module = torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2))
    module.save(str(tmp_path / "RN50.pt"))
    with pytest.raises(UserError, match="TorchScript archive") as caught:
        torch_file.read(tmp_path / "RN50.pt")
    command = (
        str(caught.value)
        .split('python -c "')[1]
        .split('"')[0]
        .replace("RN50_state", f"{tmp_path}/RN50_state")
    )
    exec(command)  # what the message tells to do
    assert torch_file.read(tmp_path / "RN50_state.pth").keys() == {"weight", "bias"}


@pytest.mark.parametrize("name", ["RN50", "ViT-B-32"])
def test_towers_start_with_open_clips_spread(name):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = [1, 2, 1, 1] if name == "RN50" else 2
    theirs = torch_clip(name, 64, text_layers=2, layers=layers, vocab_size=1000)
    image_model, text_model = our_towers(name, theirs)
    variables = jax.jit(lambda: image_model.init(jax.random.key(0), images(1, 64), train=False))()
    text = jax.jit(lambda: text_model.init(jax.random.key(0), captions(1, vocab_size=1000), train=False))()
    trees = {"image": (variables["params"], variables.get("batch_stats", {})), "text": text["params"]}
    for tensor, value in clip_torch.to_torch(trees).items():
        exact = theirs.state_dict()[tensor].numpy()
        assert value.std() == pytest.approx(exact.std(), rel=0.05 if value.size > 5000 else 0.2), tensor
        assert abs(value.mean() - exact.mean()) < 0.25 * exact.std() + 1e-9, tensor
