"""Image <-> text retrieval: is an image's own caption among the k nearest of all captions, and the other way round."""

import jax
import jax.numpy as jnp
import numpy as np

from nml_jax.core.errors import UserError

KS = (1, 5, 10)
# Rows of the matrix of cosines that are held at a time.
ROWS = 512


def evaluate(
    image: np.ndarray, text: np.ndarray, captions: np.ndarray | None = None, *, rows: int = ROWS
) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions: {"image_to_text_r1": .., "text_to_image_r10": ..}, each in [0, 1].

    A query is a hit at k if fewer than k wrong items are at least as near as the nearest right one; so a tie with a
    wrong item counts against it, and embeddings that are all the same find nothing. Right are the query's own item
    and all items of pairs with an equal caption, which nobody could tell apart. At most (rows, N) cosines are held.

    Args:
      image, text: (N, d) embeddings; row i of one belongs to row i of the other. They need not be normalised.
      captions: (N,) the captions, or numbers that are equal where these are; None: all are different.

    Raises:
      UserError: the arrays do not have the same number of rows, or none.
    """
    groups = np.arange(len(image)) if captions is None else np.unique(captions, return_inverse=True)[1]
    if not len(image) == len(text) == len(groups) or not len(image):
        raise UserError(
            "Retrieval needs as many images as texts and captions, and 1 or more of them, not "
            f"{len(image)}, {len(text)} and {len(groups)}."
        )
    image, text = unit(image), unit(text)
    groups = groups.reshape(-1).astype(np.int32)
    found = {}
    for name, queries, items in (("image_to_text", image, text), ("text_to_image", text, image)):
        ranks = _ranks(queries, items, groups, rows)
        found |= {f"{name}_r{k}": float((ranks < k).mean()) for k in KS}
    return found


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of length one, float32; a zero row stays zero."""
    x = np.asarray(x, np.float64)
    return (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def _ranks(queries: np.ndarray, items: np.ndarray, groups: np.ndarray, rows: int) -> np.ndarray:
    """(N,) how many wrong items are at least as near to each query as the nearest right one."""
    items, all_groups = jnp.asarray(items), jnp.asarray(groups)
    ranks = []
    for start in range(0, len(queries), rows):
        # All chunks have one shape, so that one program serves them: the last one repeats the last query.
        chosen = np.minimum(np.arange(start, start + min(rows, len(queries))), len(queries) - 1)
        ranks.append(_wrong_above(queries[chosen], items, groups[chosen], all_groups))
    return np.concatenate(ranks)[: len(queries)]


@jax.jit
def _wrong_above(queries: jax.Array, items: jax.Array, groups: jax.Array, all_groups: jax.Array) -> jax.Array:
    cosines = jnp.matmul(queries, items.T, precision=jax.lax.Precision.HIGHEST)
    right = groups[:, None] == all_groups
    best = jnp.where(right, cosines, -jnp.inf).max(1, keepdims=True)
    return (~right & ~(cosines < best)).sum(1)  # what is not a number is never a hit
