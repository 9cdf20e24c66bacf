"""A procedural image world, the model trained in it, and the benchmark of conditional search in it."""
