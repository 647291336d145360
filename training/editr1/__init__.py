"""Post-training of editors with DiffusionNFT: rollouts, rewards, advantages, the loss, and the trainer (Edit-R1)."""
