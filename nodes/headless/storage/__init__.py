"""The folders of pictures, and reading and writing them."""
