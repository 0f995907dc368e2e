"""Every config builds, locks, passes its stage's check, refuses a typo, and names its smoke form."""

import importlib
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from nml_jax.core import plugin, stage
from nml_jax.core.errors import UserError

ROOT = Path(__file__).parent.parent
NAMES = sorted(str(p.relative_to(ROOT).with_suffix("")) for p in (ROOT / "configs").glob("*/*.py"))


def get_config(name: str, arg: str | None = None) -> ConfigDict:
    return importlib.import_module(name.replace("/", ".")).get_config(arg)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arg", [None, "smoke"])
def test_builds_and_locks(name, arg):
    config = get_config(name, arg).lock()
    assert config.stage in stage.names()
    assert name.split("/")[1] == config.stage
    with pytest.raises((AttributeError, KeyError)):
        config.no_such_key = 1
    with pytest.raises(AttributeError):
        _ = config.no_such_key


@pytest.mark.parametrize("name", NAMES)
def test_refuses_an_unknown_argument(name):
    with pytest.raises(ValueError, match="smoke"):
        get_config(name, "smok")


@pytest.mark.parametrize("name", NAMES)
def test_header_says_how_to_run_it(name):
    header = (ROOT / f"{name}.py").read_text().split('"""')[1]
    assert f"python -m nml_jax.main --config={name}.py" in header


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("configs/pretrain/")])
def test_pretraining_has_a_model_that_traces(name):
    """Shapes only: nothing is computed, so the ImageNet configs are as cheap as the others."""
    config = get_config(name)
    plugin.find("pretrain", config.objective, "prepare").check(config)
    config.model.options.variant = "vit_x17"
    with pytest.raises(UserError, match="valid: (resnet10|vit_|rn50)"):
        plugin.find("pretrain", config.objective, "prepare").check(config)
