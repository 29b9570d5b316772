"""The tasks that a model is trained for: losses, metrics, style transfer."""
