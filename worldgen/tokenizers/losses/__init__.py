"""What visual tokenizers are trained on: likeness of pixels and features, and discriminators."""
