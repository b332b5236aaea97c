"""Mathematics that families share: grids and packing, the blocked second-order solver, whitened decompositions."""
