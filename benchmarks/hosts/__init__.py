"""The drop-in classes inside sb3-contrib and tianshou, against the hosts' own."""
