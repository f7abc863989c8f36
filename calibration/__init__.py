"""Calibration: watches the model on real clips and writes the scales that quantized formats need."""
