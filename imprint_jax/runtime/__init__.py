"""Processes, memory and files: what runs, and what is published."""
