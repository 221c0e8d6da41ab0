"""The toy model and everything that knows the drawn puppets it was trained on."""
