"""A braid in one process, for notebooks and training: `BraidedLLM` and `ModelWrapper`."""
