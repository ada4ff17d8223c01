"""The fall-back where namespaces are refused: Landlock, seccomp and limits of processes, by system calls
alone."""
