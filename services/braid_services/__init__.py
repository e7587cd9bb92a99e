"""The services: shards and fusion. In each, `backend` knows torch and no network, `servicer` the reverse."""

import os

# gRPC's core reads this once, when it is first imported, so it stands here, before any module that imports it.
# A server's own thread then reads its sockets instead of being told by another one that there is something to
# read: a tenth of a millisecond less per message. Whoever sets the variable has the last word.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
