"""Episodes and videos on disk."""
