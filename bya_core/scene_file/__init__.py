"""Scene files: every key they may have, reading them and all they name, and what is odd about them."""
