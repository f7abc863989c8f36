"""Training: the data it reads, and the worlds that data can be drawn from."""
