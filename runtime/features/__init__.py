"""What the encoder made, kept for the questions to come: in memory, on disk, between processes."""
