"""Spans forward and backward over whole sequences, for training what stands between them."""
