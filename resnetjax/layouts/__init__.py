"""How each system describes a net beside its weights, read and written side by side."""
