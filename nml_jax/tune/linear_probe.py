"""Linear probe: softmax regression on the clean features, not normalised (protocol §4)."""

import functools

import jax
import optax

from nml_jax.core.errors import UserError
from nml_jax.core.task import Batch, PyTree, Task
from nml_jax.tune.head import Classifier

SWEEPABLE = ()


def views(**head: object) -> int:
    """0: a step sees the clean view."""
    _no_options(head)
    return 0


@functools.cache
def make(*, dim: int, num_classes: int, **head: object) -> Task:
    """The Task: init as in the official code (kaiming-uniform weights, zero bias), loss = cross-entropy.

    Raises:
      UserError: `head` is not empty.
    """
    _no_options(head)
    model = Classifier(num_classes)

    def init(rng: jax.Array, batch: Batch) -> tuple[PyTree, PyTree, PyTree]:
        return model.init(rng, jax.numpy.zeros((1, dim)))["params"], {}, {}

    def loss(params: PyTree, frozen: PyTree, stats: PyTree, batch: Batch, rng: jax.Array):
        logits = model.apply({"params": params}, batch["x"][:, 0])
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
        accuracy = (logits.argmax(axis=1) == batch["y"]).mean()
        return cross_entropy, (stats, {"loss": cross_entropy, "accuracy": accuracy})

    def predict(params: PyTree, frozen: PyTree, stats: PyTree, batch: Batch) -> jax.Array:
        return model.apply({"params": params}, batch["x"])

    return Task(init, loss, predict)


def _no_options(head: dict[str, object]) -> None:
    if head:
        raise UserError(
            f"linear_probe has no option {', '.join(sorted(head))}; it has none. Leave config.head empty."
        )
