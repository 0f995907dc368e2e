"""Runs a conversion as an Apache Beam pipeline: the same functions on Dataflow, Flink, Spark, or here (DirectRunner).

Workers need this package installed, and a file system that all of them share for the shards and the work directory.
"""

from collections.abc import Callable, Sequence
from typing import Any

from nml_jax.core.errors import UserError


def apply(
    function: Callable[[Any], None],
    items: Sequence[Any],
    *,
    title: str,
    progress: bool,
    flags: Sequence[str] = ("--runner=DirectRunner",),
) -> None:
    """`function(item)` for each item, in any order.

    Args:
      flags: Beam's pipeline options, for example ("--runner=DataflowRunner", "--project=P", "--region=R").

    Raises:
      UserError: Apache Beam is not installed.
      Whatever `function` raises, as Beam passes it on.
    """
    del progress  # runners have their own pages
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            f"Apache Beam is not installed ({error}). `pip install 'nml_jax[convert]'` installs it, in an environment "
            "of its own, because it wants older versions of some packages than requirements.txt has. Or let the "
            "processes of one machine do the work (a config without :beam): they write the same bytes."
        ) from None
    if not items:
        return
    with apache_beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
        shards = pipeline | "Shards" >> apache_beam.Create(list(items))
        # Without it a runner may fuse both steps, and give all shards to one worker.
        shards = shards | "Spread" >> apache_beam.Reshuffle()
        _ = shards | title >> apache_beam.Map(function)
