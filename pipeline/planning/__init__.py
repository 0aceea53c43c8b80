"""What is decided before the first shard, as pure functions: plan, shards, fingerprint, batching, cost."""
