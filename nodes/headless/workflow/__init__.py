"""Workflow files: the editor's form, the API form, and the conversion from one to the other."""
