"""The wire of Braid: messages, tensor codec, errors, channels and clients. Needs neither torch nor ray."""
