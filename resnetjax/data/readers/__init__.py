"""Readers of training data, one for each layout; `resnetjax.data.datasets` chooses among them."""
