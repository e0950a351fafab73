"""Makes a directory ready to be a data set on Kaggle: its metadata, and what its rules ask for."""
