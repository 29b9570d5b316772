"""One optimizer update on all replicas, and the evaluation of a split."""
