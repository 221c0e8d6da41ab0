"""Clips in webdataset tar shards: what curation writes and stage 3 reads. The format is told in docs/reference/shards.md."""
