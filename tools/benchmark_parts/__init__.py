"""Parts of tools/benchmark.py that `m3mlx bench` does not have."""
