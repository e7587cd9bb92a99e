"""The services: shards and fusion. In each, `backend` knows torch and no network, `servicer` the reverse."""
