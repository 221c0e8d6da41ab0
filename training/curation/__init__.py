"""Data curation: source footage to training shards (paper sec. 4.1, data cleaning, and 4.2, processing)."""
