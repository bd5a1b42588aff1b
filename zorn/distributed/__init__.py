"""Many processes: members dealt over replicas, and losses sent instead of gradients.

Started by torchrun; every process runs the same program on the same batches.
"""

from zorn.distributed.group import Group
from zorn.distributed.launch import start
from zorn.distributed.share import share
from zorn.errors import DivergedReplicaError, WorkerError

__all__ = ["DivergedReplicaError", "Group", "WorkerError", "share", "start"]
