"""Clips for training: shards, buckets, encoding and caching."""
