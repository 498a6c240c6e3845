"""Documents with their memories in one file, signed."""
