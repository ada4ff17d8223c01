"""Tasks from repositories: the parts of `synth/repositories.py`."""
