"""The orchestrator: drives shards in lock step, fuses their states, and answers users."""
