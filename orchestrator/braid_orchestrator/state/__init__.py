"""What several processes of one braid must agree on: which replicas there are, what runs, which weights count."""
