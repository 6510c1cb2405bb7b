"""One base model and a thousand domains behind one HTTP endpoint, the deltas exchanged in place."""
