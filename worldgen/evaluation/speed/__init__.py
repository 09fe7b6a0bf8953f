"""How quick playing, decoding and coding are, and what this machine allows."""
