"""From pixels and actions to tokens and back."""
