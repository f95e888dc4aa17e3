"""Measurements of the operators and the network against plain PyTorch."""
