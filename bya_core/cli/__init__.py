"""The `bya` command line, one file per command."""
