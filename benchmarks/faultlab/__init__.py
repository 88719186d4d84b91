"""What `benchmarks/faults.py` is made of: a deployment to hurt, clients to notice, and the hurting itself."""
