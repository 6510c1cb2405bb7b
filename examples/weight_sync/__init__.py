"""A language model trained in one process while another follows it, bit for bit, and generates."""
