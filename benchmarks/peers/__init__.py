"""Whole updates against the same updates in JAX, sb3-contrib and tianshou."""
