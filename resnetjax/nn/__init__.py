"""The modules."""
