"""The queue of prompts: its store, its worker and the messages to clients."""
