"""What builds, changes or runs simulations to learn of a model; `inspection` is what one is."""
