"""Real quality of a plan: outputs compared with those of the original, candidates, and the processes that judge them."""
