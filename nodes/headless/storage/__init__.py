"""The folders of pictures, and functions that read and write pictures."""
