"""Small networks and rules that read from frames what happened in them."""
