"""The gateway owns requests, replicas only compute."""
