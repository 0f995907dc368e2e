"""Eight simulated devices for every test, and one folder of embedded data for the whole session."""

import os
import sys

# Before JAX starts: the same programs run on 1 and on 8 devices in these tests. Programs that run for a moment are
# not worth optimising: compiling is most of what the tests do.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"

import pytest
from absl import flags

flags.FLAGS(sys.argv[:1])  # Grain's workers want parsed flags


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A TFDS folder; the embedded data sets are built in it when first asked for, once for all test processes."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "tfds"
    folder.mkdir(exist_ok=True)
    return os.environ.get("NML_TEST_DATA_DIR") or str(folder)
