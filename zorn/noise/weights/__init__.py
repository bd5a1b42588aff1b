"""Noise on the weights: its structures, directions and folds."""
