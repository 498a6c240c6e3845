"""What MLX needs on Linux without a GPU; a Mac and a GPU need none of it."""
