"""Losses and targets: pure functions of one sequence, masked."""
