"""Number formats that weights and activations are rounded to: one file each, NumPy alone.

Each says what numbers it has, how a matrix is rounded to them at load, and what is left of it. Which range an
activation gets is decided before, from data: `llamavid.calibration`, and `llamavid.scales` carries it.
"""
