"""Models: decoders, encoders, templates, and where they come from."""
