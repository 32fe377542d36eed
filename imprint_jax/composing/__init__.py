"""Composing pictures: one, several, or a whole manifest."""
