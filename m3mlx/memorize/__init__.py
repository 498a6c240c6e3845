"""Files into a store, and memories made again from stored text."""
