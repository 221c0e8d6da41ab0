"""The `bya` command line, one file a command."""
