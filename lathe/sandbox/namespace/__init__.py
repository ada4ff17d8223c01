"""Sandboxes made of Linux namespaces and an overlay, by system calls alone: no compiler, no set-user-ID
helper."""
