"""Runs one command as N processes of one job on this machine, over loopback: pods in small, for tests and debugging.

    python launch/local.py --processes=2 [--devices=8] -- python -m nml_jax.main --config=... --workdir=DIR

Each process gets its share of the devices: `--devices` simulated CPU devices in all, or with GPUs visible, the GPUs in
equal parts. Every line of output is prefixed with its process. If one process fails, the others are stopped.
"""

import argparse
import os
import shlex
import socket
import subprocess
import sys
import threading
import time


def main() -> int:
    """Starts the processes and waits; returns the first exit status that is not zero."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, help="processes to start")
    parser.add_argument(
        "--devices", type=int, default=0, help="simulated CPU devices in all; 0: one for each process"
    )
    parser.add_argument(
        "--gpus", default="", help="GPU numbers to divide, such as 0,1,2,3; empty: CPU devices"
    )
    parser.add_argument("--dry_run", action="store_true", help="print what would be started")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- the command of each process")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    gpus = args.gpus.split(",") if args.gpus else []
    total = len(gpus) or args.devices or args.processes
    if not command:
        parser.error("no command; give it after --")
    if args.processes < 1 or total % args.processes:
        parser.error(f"{total} devices cannot be divided by {args.processes} processes")

    address = f"127.0.0.1:{free_port()}"
    share = total // args.processes
    settings = [process_settings(i, args.processes, address, share, gpus) for i in range(args.processes)]
    if args.dry_run:
        for variables in settings:
            print(" ".join(f"{k}={shlex.quote(v)}" for k, v in variables.items()), shlex.join(command))
        return 0
    return run(command, settings)


def process_settings(index: int, processes: int, address: str, share: int, gpus: list[str]) -> dict[str, str]:
    """The environment variables of process `index`, which holds `share` devices."""
    variables = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
    if gpus:
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * share : (index + 1) * share])}
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={share}".strip()
    return variables | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def run(command: list[str], settings: list[dict[str, str]]) -> int:
    """Runs `command` once with each of `settings`; stops all when one fails, or when interrupted."""
    processes = [
        subprocess.Popen(
            command, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for variables in settings
    ]
    for index, process in enumerate(processes):
        threading.Thread(target=relay, args=(index, process), daemon=True).start()
    status = 0
    try:
        while status == 0 and any(p.poll() is None for p in processes):
            time.sleep(0.1)
            status = next((abs(p.returncode) for p in processes if p.poll()), 0)
        if status:
            time.sleep(2)  # the others may be about to say why they fail too
    except KeyboardInterrupt:
        status = 130
    for process in processes:
        if process.poll() is None:
            process.terminate()
    statuses = [p.wait() for p in processes]
    return status or max(map(abs, statuses))


def relay(index: int, process: subprocess.Popen) -> None:
    """Prints what the process prints, with its number in front."""
    for line in process.stdout:
        sys.stdout.write(f"[{index}] {line}")
        sys.stdout.flush()


def free_port() -> int:
    """A TCP port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
