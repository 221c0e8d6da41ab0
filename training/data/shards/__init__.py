"""Clips in webdataset tar shards, written by curation and read by training. Format: docs/reference/shards.md."""
