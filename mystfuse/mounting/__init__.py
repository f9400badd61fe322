"""The life of a mount: keeper, daemon, session, mount table, unmounting."""
