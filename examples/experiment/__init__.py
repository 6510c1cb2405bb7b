"""Common parts of the experiments: settings, cells, checkpoints, command lines."""
