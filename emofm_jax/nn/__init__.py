"""The embedding table, layers, mixers and losses: what models are made of."""
