"""Trains the toy task as a program of its own: WORKDIR STEPS [SECONDS_A_STEP]; preempted it ends with status 0."""

import contextlib
import sys
import time

from nml_jax.core import loop, optim, runtime
from nml_jax.core import mesh as meshes
from nml_jax.core.errors import Preempted
from tests.core import toy

ROWS = 32


def main(workdir: str, steps: str, pause: str = "0") -> None:
    runtime.start()
    draw = loop.Window.draw

    def slow(self, data, mesh):
        time.sleep(float(pause))
        return draw(self, data, mesh)

    loop.Window.draw = slow
    with contextlib.closing(toy.iterator(ROWS)) as data:
        loop.train(
            toy.task(0.2),
            optim.make("adamw", learning_rate=1e-2, total_steps=100),
            data,
            loop.Options(total_steps=int(steps), seed=0, save_every=2, log_every=1, progress=False),
            batch_spec=toy.spec(ROWS),
            ids=toy.IDS,
            mesh=meshes.make(),
            workdir=workdir,
        )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Preempted as stopped:
        print(stopped, flush=True)
