"""Resonance layers grafted onto models of the Hugging Face kind: all of the library that knows transformers."""
