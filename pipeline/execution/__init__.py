"""A run from its configuration to a finished store: preflight, workers, shards."""
