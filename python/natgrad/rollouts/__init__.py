"""Experience: environments, how they are stepped, and rollouts; nothing here learns."""
