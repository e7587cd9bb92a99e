"""Generated stubs of the protocol `braid.v1`."""
