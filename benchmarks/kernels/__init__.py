"""How fast the pieces of the core are, and what each technique of the kernels is worth."""
