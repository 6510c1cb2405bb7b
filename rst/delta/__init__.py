"""A sparse delta as a value, and its file."""
