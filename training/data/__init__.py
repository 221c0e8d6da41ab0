"""Training data: shards, buckets, encoding and caching."""
