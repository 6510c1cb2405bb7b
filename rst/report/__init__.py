"""Reports of a delta as one self-contained page, without scripts or network access; `rst inspect --html` writes it."""
