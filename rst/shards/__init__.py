"""The distribution of a sharded model's tensors over processes."""
