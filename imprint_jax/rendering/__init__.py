"""Training views and scenes, rendered on the CPU."""
