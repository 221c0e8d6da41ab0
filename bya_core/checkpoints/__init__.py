"""Weights: the registry (what, where, licence), loading, and maps of released names to ours."""
