"""What a character knows and remembers, and how a turn recalls it."""
