"""The sparse delta as a value, and its file format."""
