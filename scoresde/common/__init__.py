"""What every folder uses: checks, the registry, randomness, sharding, errors, figures."""
