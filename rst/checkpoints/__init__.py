"""Weights in any file or folder, as mappings from names to tensors."""
