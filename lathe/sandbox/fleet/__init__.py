"""Sandboxes on many machines: one agent a machine holds thousands, and a fleet chooses among them."""
