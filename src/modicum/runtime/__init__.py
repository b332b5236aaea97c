"""What a model takes where it runs: memory, seconds, and the clock of this machine."""
