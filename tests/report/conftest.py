"""The synthetic study, once for all tests."""

import pytest
from synthetic_study import make_study


@pytest.fixture(scope="session")
def study_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="session")
def study(study_dir):
    """The whole study, with its spectra under `study_dir`."""
    return make_study(study_dir)
