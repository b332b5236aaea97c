"""One merge: models read piece by piece, what is made of them written beside the base's layout, and judged."""
