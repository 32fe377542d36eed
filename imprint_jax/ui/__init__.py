"""The page: composing in a browser."""
