"""Image-text pairs from the web -> a data set that is read at random: tar shards or folders -> ArrayRecord.

run         the stage: every shard is converted by itself, then all are published as one data set
shard       a unit of work, and the pairs in it
captioned   a pair -> a record, or the reason why it is dropped
part        one shard -> one ArrayRecord file, complete or absent
publish     repeated ids are dropped, files numbered, the data set described; the report
webdataset, folders, tables   readers: what img2dataset writes, and image folders with a table of captions
local, beam                   runners: the processes of one machine, or an Apache Beam pipeline

Contract of a reader, `nml_jax/convert/<name>.py`:

    shards(source, place, *, scratch, **options) -> list[Shard]     # in order; a UserError if there are none
    samples(shard, faults, **options) -> Iterator[Sample]           # what is wrong with the shard goes to `faults`

Contract of a runner:

    apply(function, items, *, title, **options) -> None             # function(item) for each; results are files

Nothing here depends on the runner: two workers, or a hundred, write the bytes that one writes.
"""
