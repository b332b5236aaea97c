"""The command line: what the library does, in words a shell understands."""
