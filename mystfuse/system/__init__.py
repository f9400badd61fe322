"""What we ask of the operating system: files, memory, threads, processes, system calls."""
