"""Residual Sparse Training."""
