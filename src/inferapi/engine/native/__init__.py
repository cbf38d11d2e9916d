"""Matrix products, attention and what stands between them, compiled for this very processor. See docs/decisions."""
