"""What the nodes do beyond the pipeline: casts, mask pictures, wishes as plain values, previews, preflight."""
