"""Networks that measure, by their published weights. They stand on the floor of the checkpoints, not of the metrics."""
