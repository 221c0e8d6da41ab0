"""Neural networks only: no files, no devices."""
