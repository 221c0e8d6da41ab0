"""Raw footage -> training shards: the paper's data cleaning (sec. 4.1) and processing (sec. 4.2) as stages."""
