"""Weight files of other systems: readers, names, and which is which."""
