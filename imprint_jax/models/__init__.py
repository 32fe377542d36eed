"""The networks, and how the whole model is put together."""
