"""Short runnable stories on the public API of worldgen."""
