import pytest

from nml_jax.core import plugin
from nml_jax.core.errors import UserError


def test_a_file_is_a_plug_in():
    assert "symmetric" in plugin.names("noise", "corrupt")
    assert "record" not in plugin.names("noise", "corrupt")
    assert plugin.find("noise", "symmetric", "corrupt").__name__ == "nml_jax.noise.symmetric"


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(UserError, match=r"asymmetric.*symmetric.*Did you mean 'symmetric'"):
        plugin.find("noise", "symetric", "corrupt")


def test_options_are_checked_by_name():
    def make(a, *, width=1, depth): ...

    with pytest.raises(UserError, match="has no option widht; its options are width, depth"):
        plugin.call(make, "model.options", 0, widht=2, depth=1)
    with pytest.raises(UserError, match="needs depth"):
        plugin.call(make, "model.options", 0, width=2)
    assert plugin.call(lambda *, a, b=2: (a, b), "x", a=1) == (1, 2)
