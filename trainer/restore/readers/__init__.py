"""One module a format, each giving a `CheckpointSource`, and what formats share; only `restore` imports them."""
