"""The benchmarks: each reads its items and judge prompts from the user's download, and knows its questions and scores."""
