"""What is measured, from pixels, masks and sound alone; nothing here knows a model."""
