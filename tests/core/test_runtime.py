"""Processes that find each other: what each launcher's variables mean, real processes over loopback, clear errors."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nml_jax.core import hosts
from nml_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
# Joins as the environment says; then every process adds up its number + 1 over all processes and all devices.
PROGRAM = """
import json, os, sys
from nml_jax.core import runtime
from nml_jax.core.errors import UserError
try:
    runtime.start(initialization_timeout=int(sys.argv[1]))
except UserError as error:
    print(error)
    sys.stdout.flush()
    os._exit(2)
import jax, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
me = jax.process_index() + 1
gathered = multihost_utils.process_allgather(np.array(me)).ravel()
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
local = np.full(jax.local_device_count(), float(me), np.float32)
array = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("data")), local)
total = jax.jit(lambda x: x.sum(), out_shardings=NamedSharding(mesh, PartitionSpec()))(array)
print(json.dumps({"processes": jax.process_count(), "devices": jax.device_count(), "lead": runtime.is_lead(),
                  "initialized": jax.distributed.is_initialized(), "gathered": gathered.tolist(), "sum": float(total)}))
"""


def free_port(low: int = 1024) -> int:
    """A port from `low` on that nothing listens on."""
    for port in range(max(low, 20_000) + os.getpid() % 3000, 65_536):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise AssertionError("no free port")


def run(*environments: dict[str, str], timeout: int = 40) -> list[tuple[int, str]]:
    """(exit status, last line of output) of one process for each environment, with two devices each."""
    ours = ("JAX_", "SLURM_", "OMPI_", "TPU_", "JOB_COMPLETION", "MEGASCALE")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    clean |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(timeout)],
            env=clean | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    try:
        outputs = [process.communicate(timeout=timeout + 20) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (p.returncode, out.strip().splitlines()[-1] if out.strip() else err[-2000:])
        for p, (out, err) in zip(processes, outputs, strict=True)
    ]


def plain(number: int, count: int, port: int) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }


def kubernetes(number: int, count: int, port: int) -> dict[str, str]:
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JOB_COMPLETION_INDEX": str(number),
    }


def slurm(number: int, count: int, port: int) -> dict[str, str]:
    """What srun sets in each of `count` processes on one host; the port follows from the job's number."""
    return {
        "SLURM_JOB_ID": str(4096 * 7 + port - 61_440),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def open_mpi(number: int, count: int, port: int) -> dict[str, str]:
    return {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(count),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


# JAX told that this is a TPU machine; the devices stay those of the CPU.
LONE_TPU = {"JAX_FORCE_TPU_INIT": "1", "JAX_PLATFORMS": ""}


def tpu_pod(number: int, count: int, port: int) -> dict[str, str]:
    return LONE_TPU | {
        "TPU_WORKER_HOSTNAMES": ",".join(["localhost"] * count),
        "TPU_WORKER_ID": str(number),
        "MEGASCALE_COORDINATOR_ADDRESS": "",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.parametrize(
    ("launcher", "count"), [(plain, 4), (slurm, 2), (kubernetes, 2), (open_mpi, 2), (tpu_pod, 2)]
)
def test_processes_join_and_compute_together(launcher, count):
    port = free_port(61_440)
    results = run(*(launcher(number, count, port) for number in range(count)))
    for number, (status, line) in enumerate(results):
        assert status == 0, line
        assert json.loads(line) == {
            "processes": count,
            "devices": 2 * count,
            "lead": number == 0,
            "initialized": True,
            "gathered": list(range(1, count + 1)),
            "sum": float(count * (count + 1)),
        }


def test_a_single_process_starts_no_coordinator():
    batch_script = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    for status, line in run(batch_script, LONE_TPU):
        assert status == 0, line
        assert json.loads(line)["processes"] == 1
        assert not json.loads(line)["initialized"]


def test_who_cannot_join_says_so_in_time():
    """Process 0 alone, process 1 alone, a process 0 whose port is taken, a TPU machine that knows of nothing.

    Each has the exit status 2 and a reason; none is aborted.
    """
    with socket.create_server(("", 0)) as taken:
        results = run(
            plain(0, 2, free_port(30_000)),
            plain(1, 2, free_port(40_000)),
            plain(0, 2, taken.getsockname()[1]),
            LONE_TPU
            | {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0", "GCE_METADATA_IP": "127.0.0.1:1"},
            timeout=3,
        )
    assert [status for status, _ in results] == [2, 2, 2, 2], results
    assert "Not the 2 processes of the job joined at 127.0.0.1:" in results[0][1]
    assert "within 3 s" in results[0][1]
    assert "Process 1 of 2 could not reach process 0 at 127.0.0.1:" in results[1][1]
    assert "within 3 s" in results[1][1]
    assert "Process 0 cannot listen on port" in results[2][1]
    assert "who else belongs to its pod" in results[3][1]


STEP = slurm(1, 4, 61_500)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # independent pods
        (slurm(0, 1, 61_500), None),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_ML_PLATFORM": "JAX", "JAX_PLATFORMS": "cpu"}, None),  # one worker of a pod, for debugging
        (plain(1, 2, 80), ("127.0.0.1:80", 2, 1, ())),
        (kubernetes(1, 2, 80), ("localhost:80", 2, 1, ())),
        (STEP | plain(0, 2, 80), ("127.0.0.1:80", 2, 0, ())),  # the plain ones come first
        (STEP, ("127.0.0.1:61500", 4, 1, (1,))),
        (STEP | {"JAX_COORDINATOR_PORT": "999"}, ("127.0.0.1:999", 4, 1, (1,))),
        (STEP | {"JAX_COORDINATOR_ADDRESS": "[::1]:7"}, ("[::1]:7", 4, 1, ())),
        (STEP | {"SLURM_STEP_NUM_NODES": "4"}, ("127.0.0.1:61500", 4, 1, ())),  # one a node: all its devices
        (
            STEP | {"CUDA_VISIBLE_DEVICES": "0"},
            ("127.0.0.1:61500", 4, 1, ()),
        ),  # Slurm has divided the devices
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, ("127.0.0.1:61500", 4, 1, (1,))),
        (STEP | {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, ("127.0.0.1:61500", 4, 1, ())),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "JAX_COORDINATOR_ADDRESS": "a:1"},
            ("a:1", 2, 1, ()),
        ),
    ],
)
def test_what_the_variables_mean(environment, expected):
    job = hosts.find(environment)
    assert (job and (job.address, job.count, job.number, job.devices)) == expected


@pytest.mark.parametrize(
    "nodes",
    ["node001", "node001,host2", "node[001-015],host2", "node[001,007-015],host2", "a-b[3-4]", "127.0.0.1"],
)
def test_slurm_hosts_and_ports_are_those_that_jax_finds(nodes, monkeypatch):
    clusters = pytest.importorskip("jax._src.clusters")
    environment = slurm(0, 3, 61_500) | {"SLURM_STEP_NODELIST": nodes}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    truth = clusters.SlurmCluster.get_coordinator_address(timeout_secs=None, override_coordinator_port=None)
    assert hosts.find(environment).address == truth


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID not"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "set, but JAX_COORDINATOR_ADDRESS not"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2"}, "but JAX_PROCESS_ID not"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JOB_COMPLETION_INDEX": "0"}, "but JAX_NUM_PROCESSES not"),
        # Outside of a step, Slurm's number of tasks says nothing about this process.
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
            "JAX_NUM_PROCESSES and",
        ),
        (plain(0, 2, 80) | {"JAX_COORDINATOR_ADDRESS": "node001"}, "'node001'; valid is HOST:PORT"),
        (plain(0, 2, 80) | {"JAX_COORDINATOR_ADDRESS": "node001:http"}, "valid is HOST:PORT"),
        (plain(0, 2, 80) | {"JAX_COORDINATOR_ADDRESS": ":80"}, "valid is HOST:PORT"),
        (plain(0, 2, 99_999), "valid is HOST:PORT"),
        (plain(2, 2, 80), "process 2 of 2.*valid numbers are 0 to 1"),
        (plain(0, 2, 80) | {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        (plain(0, 2, 80) | {"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID is '-1'"),
        ({k: v for k, v in STEP.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
        (
            {k: v for k, v in STEP.items() if k not in ("SLURM_JOB_ID", "SLURM_LOCALID")},
            "SLURM_JOB_ID and SLURM_LOC",
        ),
        (STEP | {"SLURM_NTASKS": "x"}, "SLURM_NTASKS is 'x'"),
        (STEP | {"SLURM_STEP_NODELIST": ""}, "names no host"),
        (
            {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
            "Open MPI 5.*JAX_COORDINATOR_ADDRESS=HOST:PORT",
        ),
    ],
)
def test_incomplete_or_wrong_variables(environment, word):
    with pytest.raises(UserError, match=word):
        hosts.find(environment)
