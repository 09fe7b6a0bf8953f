"""Building blocks of the networks: attention, rotary positions, the key-value cache, blocks."""
