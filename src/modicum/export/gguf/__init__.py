"""Files that llama.cpp runs: one file with everything in it, and what a converter must know of each architecture as rows of data."""
