"""From records to batches: what training sees, NumPy and Grain only."""
