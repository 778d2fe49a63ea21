"""A search: space, sampler, ASHA, trials."""
