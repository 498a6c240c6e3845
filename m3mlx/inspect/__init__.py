"""Show what memories hold, and what an answer attends to."""
