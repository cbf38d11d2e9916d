"""The routes under ``/v1``: OpenAI's API, for clients that speak it."""
