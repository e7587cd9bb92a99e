"""The engine: from requests to tokens. Knows shards and fusion modules by `ports`, and no transport but theirs."""
