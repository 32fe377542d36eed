"""Both training stages: the loop, one step, and what a run keeps."""
