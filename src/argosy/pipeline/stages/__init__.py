"""One module per stage: `run(context)` reads what it needs, leaves blobs, and returns their digests."""
