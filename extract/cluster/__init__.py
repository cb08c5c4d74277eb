"""Extraction on the workers of a Dask cluster: many machines, or many processes of this one.

The driver, which is the process that the user started, lists the source, says what is missing and
binds the cache, all as in a run without a cluster. In between it hands out tasks. A task is one
shard: a worker reads its images, takes them through the same pipeline, and writes the shard; a
receipt comes back. Shards are named by what they hold, so a task that is lost, retried, or done
twice changes nothing.
"""
