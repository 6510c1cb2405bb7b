"""What the experiments share: settings, cells, stopping and going on, command lines."""
