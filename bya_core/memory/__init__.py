"""Fitting a model into the memory of a GPU."""
