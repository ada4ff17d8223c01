"""Places in which code that a model wrote may run: isolation, files, limits, snapshots, pools of them."""
