"""A base model as a service that runs spans of its layers."""
