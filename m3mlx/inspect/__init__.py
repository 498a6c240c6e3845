"""What a memory holds, and what an answer attends to."""
