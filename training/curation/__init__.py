"""Data curation: source footage to training shards, the paper's cleaning (sec. 4.1) and processing (sec. 4.2) stages."""
