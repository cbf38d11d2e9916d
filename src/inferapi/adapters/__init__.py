"""The outside world, one file each; its errors are translated at the door."""
