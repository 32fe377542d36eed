"""Noise schedule, losses, and the way from noise to pictures."""
