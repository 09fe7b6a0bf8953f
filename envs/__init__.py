"""Real environments behind Gymnasium, their scripted drivers, and the recorder."""
