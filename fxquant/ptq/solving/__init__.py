"""The pure solver: integers and a scale for a weight, given what its inputs look like."""
