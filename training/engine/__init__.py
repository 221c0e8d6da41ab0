"""The training loop, its losses, and how runs are spread, saved and resumed."""
