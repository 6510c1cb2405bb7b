"""One base model and a thousand domains behind one HTTP endpoint, with deltas swapped in place."""
