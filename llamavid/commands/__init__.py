"""The commands, one noun a file. `cli.py` gathers them; heavy imports are inside each."""
