"""Scaling laws: how the loss of finished trainings follows from parameters and tokens."""
