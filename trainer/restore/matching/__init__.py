"""Decides which tensor of a checkpoint goes into which variable of a model; `plan` is the way in."""
