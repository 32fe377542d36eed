"""What composites are measured by, and on which test sets."""
