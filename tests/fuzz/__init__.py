"""Fuzzing: targets, each a function of bytes, run guided by coverage (``scripts/fuzz``) and shortly by hypothesis
(``test_fuzz``)."""
