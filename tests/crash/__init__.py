"""Kill -9 at random moments, of a writer and of its server: nothing acknowledged is lost, no wrong byte is read."""
