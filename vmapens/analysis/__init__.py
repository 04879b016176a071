"""One module per question about a run's explanations; plain functions of one sample's attention [V, T, F]."""
