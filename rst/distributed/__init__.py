"""Sparse deltas of models that are sharded over processes, exported and applied without gathering the model."""

from rst.distributed.apply import PreparedShards, apply_sharded
from rst.distributed.export import export_sharded

__all__ = ["PreparedShards", "apply_sharded", "export_sharded"]
