"""The paper's claims, checked on small models."""
