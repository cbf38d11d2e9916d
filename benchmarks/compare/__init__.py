"""This server and what a user would pick instead of it, side by side on one machine."""
