"""Weights on disk: released folders, and public checkpoints to and from PyTorch."""
