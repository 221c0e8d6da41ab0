"""Model weights: registry, download, loading, and the mapping of released names to ours."""
