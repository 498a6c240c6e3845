"""Explicit memory: written from references, packed into records, read by attention."""
