"""What a model is trained for: losses, metrics, style transfer."""
