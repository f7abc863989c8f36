"""How fast a bundle is here, module by module. Begin at `profile.py`."""
