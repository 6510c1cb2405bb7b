"""Deltas on a model in memory: apply, swap, and the verbs of PEFT."""
