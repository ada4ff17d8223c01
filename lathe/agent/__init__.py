"""The coding agent: its loop, its tools, what it remembers, and the terminal in which it works."""
