"""Raw rows -> shards -> batches. No jax."""
