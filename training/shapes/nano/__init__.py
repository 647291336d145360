"""How nano is trained, from random weights to the model that ships."""
