"""What scripts/release makes for pip (``archives``) and Debian (``debian.sh``), and tries that in (``chroots.sh``)."""
