"""Our own train states on disk: saved, found whole, resumed."""
