"""Models as modicum sees them: weights read lazily, blocks and units found by structure, sites that one choice binds."""
