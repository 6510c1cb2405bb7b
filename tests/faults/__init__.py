"""What is left when something stops half way: a kill, Ctrl-C, a full disk, another process at the same file."""
