"""Conversations: turns in, steps and answers out."""
