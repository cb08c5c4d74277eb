"""Other processes that extract: what they are sent, and how they read the images themselves.

:mod:`extract.workers.pool` starts processes of this machine; :mod:`extract.cluster` uses those of a
Dask cluster.
"""
