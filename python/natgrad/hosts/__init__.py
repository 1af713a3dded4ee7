"""The core in the places of other libraries: torch, stable-baselines3 and tianshou."""
