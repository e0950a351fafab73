"""What a training loop needs to go on exactly where it stopped."""
