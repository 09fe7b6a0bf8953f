"""Measurements of tokenizers, world models and whole worlds, and the pages that show them."""
