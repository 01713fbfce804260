"""Images and labels on the host."""
