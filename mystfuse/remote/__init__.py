"""Images elsewhere: their addresses, the fetcher (a process with the network and without secrets of images), and what a
daemon says to it. Everything here is on the untrusted side of the hash tree."""
