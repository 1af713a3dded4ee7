"""The core in place of other libraries' updates: torch, stable-baselines3 and tianshou."""
