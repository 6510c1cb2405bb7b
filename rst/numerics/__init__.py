"""Bits, digests and threads: what the rest computes with."""
