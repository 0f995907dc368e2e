"""The processes of one job find each other: from plain variables, Slurm, Kubernetes, Open MPI or a TPU pod.

    plain       JAX_COORDINATOR_ADDRESS=HOST:PORT (process 0 listens there), JAX_NUM_PROCESSES, JAX_PROCESS_ID
    Kubernetes  the first two, and JOB_COMPLETION_INDEX, which an Indexed Job sets
    Slurm       what srun sets; the first host of the step and a port made of the job's number (JAX_COORDINATOR_PORT
                for another one). Works with JAX_COORDINATOR_ADDRESS too.
    Open MPI    what mpirun sets; version 5 and later need JAX_COORDINATOR_ADDRESS as well
    TPU pod     found by JAX from the machine's metadata

Plain variables come before what a launcher sets. JAX ends the process with a stack trace where a peer cannot be
reached, and crashes where the port is taken; so both are looked at before.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from nml_jax.core.errors import UserError

PLAIN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclass(frozen=True)
class Job:
    """This process's place in a job of `count` processes.

    Attributes:
      source: where this is known from, for messages.
      address: HOST:PORT of process 0; None where JAX finds it, and the numbers, itself.
      devices: the local devices that are this process's; empty for all.
      method: JAX's name for how it is to find what is None.
    """

    source: str
    address: str | None = None
    count: int | None = None
    number: int | None = None
    devices: tuple[int, ...] = ()
    method: str | None = "deactivate"


def find(environment: Mapping[str, str]) -> Job | None:
    """What the environment says about other processes; None if this is the only one.

    Raises:
      UserError: variables are missing, or their values do not fit together.
    """
    in_step = "SLURM_STEP_NODELIST" in environment  # the batch script itself has SLURM_NTASKS, but no peers
    if any(name in environment for name in PLAIN):
        return _plain(environment, in_step)
    if _number(environment, "OMPI_COMM_WORLD_SIZE", default=1) > 1:
        return _open_mpi(environment)
    if in_step and _number(environment, "SLURM_NTASKS", default=1) > 1:
        return _slurm(environment)
    # JAX sets this one when it is imported on a machine with TPUs. Such a machine may be all there is.
    platforms = environment.get("JAX_PLATFORMS", "")
    if "TPU_ML_PLATFORM" in environment and (not platforms or "tpu" in platforms):
        return Job("the TPU machine's metadata", method=None)
    return None


def join(job: Job, timeout: int) -> None:
    """Connects this process with the others of its job.

    Args:
      timeout: seconds to wait for all of them.

    Raises:
      UserError: they did not all come in time, or process 0's port is taken.
    """
    deadline = time.monotonic() + timeout
    if job.address and job.number == 0 and "JAX_COORDINATOR_BIND_ADDRESS" not in os.environ:
        _check_port(job)
    elif job.address:
        _wait_for_coordinator(job, timeout, deadline)
    failures: list[Exception] = []
    # In a thread, because JAX's own way to give up is to abort the process.
    thread = threading.Thread(target=_initialize, args=(job, timeout, failures), daemon=True)
    thread.start()
    thread.join(max(deadline - time.monotonic(), 1.0))
    if thread.is_alive():
        count = f"the {job.count}" if job.count else "all"
        raise UserError(
            f"Not {count} processes of the job joined at {job.address or 'the coordinator'} within {timeout} s "
            f"(known from {job.source}). Look at the output of each process for an earlier error, and whether as many "
            "were started, each with its own number; then start all of them again."
        )
    if failures and job.method is None and isinstance(failures[0], OSError):
        raise UserError(
            f"This is a TPU machine, but who else belongs to its pod could not be asked ({failures[0]}). Give it in "
            f"the variables {', '.join(PLAIN)}; for a single machine localhost:8476, 1 and 0."
        )
    # JAX found no pod: a TPU machine of its own.
    if failures and not (job.method is None and isinstance(failures[0], ValueError)):
        raise failures[0]


def _initialize(job: Job, timeout: int, failures: list[Exception]) -> None:
    devices = None if "JAX_LOCAL_DEVICE_IDS" in os.environ else list(job.devices)
    try:
        jax.distributed.initialize(
            coordinator_address=job.address,
            num_processes=job.count,
            process_id=job.number,
            local_device_ids=devices,
            cluster_detection_method=job.method,
            initialization_timeout=timeout + 30,
        )
    except Exception as error:
        failures.append(error)


def _plain(environment: Mapping[str, str], in_step: bool) -> Job:
    """The three variables; a launcher's own may stand in for the two numbers."""
    counts = ["JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE"] + ["SLURM_NTASKS"] * in_step
    numbers = ["JAX_PROCESS_ID", "JOB_COMPLETION_INDEX", "OMPI_COMM_WORLD_RANK"] + ["SLURM_PROCID"] * in_step
    count = next((name for name in counts if name in environment), None)
    number = next((name for name in numbers if name in environment), None)
    found = ("JAX_COORDINATOR_ADDRESS" in environment, count, number)
    missing = [name for name, there in zip(PLAIN, found, strict=True) if not there]
    if missing:
        raise UserError(
            f"{' and '.join(n for n in PLAIN if n in environment)} is set, but {' and '.join(missing)} not. Several "
            "processes need all three: HOST:PORT of process 0, how many there are, and this one's number from 0 "
            "(JOB_COMPLETION_INDEX in a Kubernetes Indexed Job, or what srun or mpirun set, does for the numbers). "
            "For a single process unset them all."
        )
    source = f"JAX_COORDINATOR_ADDRESS, {count} and {number}"
    address = environment["JAX_COORDINATOR_ADDRESS"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"JAX_COORDINATOR_ADDRESS is {address!r}; valid is HOST:PORT, such as node001:8476, the same for all "
            "processes, with a free port of the host that runs process 0."
        )
    return _job(source, address, _number(environment, count), _number(environment, number))


def _slurm(environment: Mapping[str, str]) -> Job:
    missing = [name for name in SLURM if name not in environment]
    if missing:
        raise UserError(
            f"SLURM_NTASKS={environment['SLURM_NTASKS']} says that this is one of several processes, but "
            f"{' and '.join(missing)} is not set, which srun does. Start the processes by srun, or for a single "
            "process unset SLURM_STEP_NODELIST."
        )
    first = re.match(r"([^,\[]*)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"])  # node[001-003,7],other
    host = first[1] + (first[2] or "")
    if not host:
        raise UserError(
            f"SLURM_STEP_NODELIST={environment['SLURM_STEP_NODELIST']!r} names no host; valid is as srun sets it, such "
            "as node[001-004]."
        )
    # As JAX does: one of the upper 4096 ports, so that jobs on one host seldom meet.
    port = 61440 + _number(environment, "SLURM_JOB_ID") % 4096
    if "JAX_COORDINATOR_PORT" in environment:
        port = _number(environment, "JAX_COORDINATOR_PORT")
    count, local = (_number(environment, name) for name in ("SLURM_NTASKS", "SLURM_LOCALID"))
    job = _job("Slurm's variables", f"{host}:{port}", count, _number(environment, "SLURM_PROCID"))
    # Processes that share a host divide its GPUs, unless Slurm has done so: each then sees its own only.
    alone = count == _number(environment, "SLURM_STEP_NUM_NODES", default=1)
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ","))
    if alone or "SLURM_GPUS_PER_TASK" in environment or "," not in visible:
        return job
    return Job(job.source, job.address, job.count, job.number, devices=(local,))


def _open_mpi(environment: Mapping[str, str]) -> Job:
    if "OMPI_MCA_orte_hnp_uri" not in environment:
        raise UserError(
            f"OMPI_COMM_WORLD_SIZE={environment['OMPI_COMM_WORLD_SIZE']} says that mpirun started several processes, "
            "but not where they meet (Open MPI 5 does not). Set JAX_COORDINATOR_ADDRESS=HOST:PORT for all of them, "
            "with a free port of the host that runs rank 0: mpirun -x JAX_COORDINATOR_ADDRESS=node001:8476 ..."
        )
    alone = _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", default=1) == 1
    local = _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK", default=0)
    return Job("Open MPI's variables", devices=() if alone else (local,), method="ompi")


def _job(source: str, address: str, count: int, number: int) -> Job:
    if not 0 <= number < count:
        raise UserError(
            f"This is process {number} of {count} (known from {source}); valid numbers are 0 to {count - 1}, each "
            "for one process."
        )
    return Job(source, address, count, number)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name, default)
    if not str(value).isdecimal():
        raise UserError(f"{name} is {value!r}; valid is a whole number from 0.")
    return int(value)


def _check_port(job: Job) -> None:
    """Raises a UserError if something else listens on the port that process 0 is to listen on."""
    port = int(job.address.rpartition(":")[2])
    try:
        socket.create_server(("", port), family=socket.AF_INET).close()
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen on port {port} ({os.strerror(error.errno)}; known from {job.source}). Another "
            "program, or a process left over from an earlier run, has it: end that one, or give another port, in "
            "JAX_COORDINATOR_ADDRESS or under Slurm in JAX_COORDINATOR_PORT, the same for all processes."
        ) from None


def _wait_for_coordinator(job: Job, timeout: int, deadline: float) -> None:
    """Returns when process 0 listens; its host's name may become known only when it starts."""
    host, _, port = job.address.rpartition(":")
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() + 0.2 > deadline:
                raise UserError(
                    f"Process {job.number} of {job.count} could not reach process 0 at {job.address} within "
                    f"{timeout} s ({error.strerror or error}; known from {job.source}). Look at the output of process "
                    "0, whether it runs, and whether a firewall or a wrong address stands between."
                ) from None
            time.sleep(0.2)
