"""What is installed here, which backends work, and how fast they are: the facts behind `rst doctor`."""
