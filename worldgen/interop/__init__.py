"""Checkpoints of others: one file for each origin, which maps their names and settings to ours."""
