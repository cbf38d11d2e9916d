"""One loaded model turning prompts into text; runs in the worker process."""
