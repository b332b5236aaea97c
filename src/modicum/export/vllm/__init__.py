"""Directories that vLLM runs: what its compressed-tensors loader fuses and which kernels it has, beside the ``transformers`` target's writer."""
