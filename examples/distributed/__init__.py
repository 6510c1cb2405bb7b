"""Residual Sparse Training over several processes."""
