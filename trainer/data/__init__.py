"""Examples of a split, and the batches that they become."""
