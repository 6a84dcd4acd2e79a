"""What will the next completion group of each prompt look like? One method per file, all behind `types.Predictor`."""
