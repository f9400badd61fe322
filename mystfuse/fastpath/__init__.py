"""The fast path: requests that C threads answer, without the interpreter; ``fastpath.h`` has the rules."""
