"""The demo: two small specialised models and their braid, built from text that every Python carries."""
