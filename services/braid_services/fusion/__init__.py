"""The fusion modules of a braid as a service."""
