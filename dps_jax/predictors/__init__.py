"""What will the next group of each prompt look like? One method per file, all behind `types.Predictor`."""
