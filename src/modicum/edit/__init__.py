"""Facts that a model is taught, exactly and reversibly, by changes that are worked out rather than trained for long."""
