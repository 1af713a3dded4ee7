"""Natural gradients of any function, exactly solved small worlds, and pictures of the ideas."""
