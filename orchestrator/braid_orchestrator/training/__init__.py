"""Training of a braid's fusion modules against its services."""
