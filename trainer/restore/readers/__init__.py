"""One module a format, each giving a `CheckpointSource`; nothing outside of `restore` imports them."""
