"""A delta as one self-contained page: no scripts, nothing from the network. `rst inspect --html` writes it."""
