"""Weights: the registry (what, where, licence), loading, and the maps between released files and our names."""
