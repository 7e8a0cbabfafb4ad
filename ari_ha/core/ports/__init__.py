"""The contract between deciding and doing: one module per outside system,
with the events it sends us and the effects it takes."""
