"""Raw documents -> clean documents -> token shards: one step, one file, each documents in and documents out."""
