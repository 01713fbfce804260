"""Training: recipe, optimiser, step, loop, sharding and checkpoints."""
