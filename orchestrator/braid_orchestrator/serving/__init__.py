"""A running braid for many callers: the asynchronous service, gRPC, metrics, and plain processes."""
