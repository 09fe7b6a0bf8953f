"""Training scripts: `python -m train.<name> experiment=<world>`."""
