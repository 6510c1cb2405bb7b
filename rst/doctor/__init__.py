"""What is installed, which backends work, and how fast they are: the data of `rst doctor`."""
