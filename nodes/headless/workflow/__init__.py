"""Workflow files: reading the editor's form and the API form, and converting between them."""
