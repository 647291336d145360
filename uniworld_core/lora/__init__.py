"""LoRAs: read from files in any common naming, matched to a network's layers, and added to their outputs as it runs."""
