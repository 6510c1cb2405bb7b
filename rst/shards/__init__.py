"""Which process of a sharded model has which part of each tensor."""
