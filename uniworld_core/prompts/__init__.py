"""What a person gives a model: text, pictures, and the turns of a conversation. Any family reads these."""
