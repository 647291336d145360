"""OpenAI's chat completions over the model's answers to questions."""
