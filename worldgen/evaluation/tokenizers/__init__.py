"""Pictures and clips against their reconstructions."""
