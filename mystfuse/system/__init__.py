"""Interfaces to the operating system: files, memory, threads, processes, system calls."""
