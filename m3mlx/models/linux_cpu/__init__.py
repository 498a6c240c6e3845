"""Workarounds for MLX's CPU build on Linux; on a Mac or a GPU they do nothing."""
