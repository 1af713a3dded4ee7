"""How fast and how accurately the linear system of an update is solved."""
