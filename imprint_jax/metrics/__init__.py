"""What composites are measured by, one file a family."""
