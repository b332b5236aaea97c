"""Checkpoints that are quantized already, read tensor by tensor as the dense weights that they stand for."""
