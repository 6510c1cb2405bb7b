"""Deltas on a model in memory: applying, swapping, and the methods of PEFT."""
