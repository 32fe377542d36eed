"""From files to host batches: NumPy, Pillow and Grain, no jax."""
