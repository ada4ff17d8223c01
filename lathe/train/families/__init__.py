"""Families of made tasks: problems without end, each with hidden tests, for loops that learn in minutes."""
