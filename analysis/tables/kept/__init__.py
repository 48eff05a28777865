"""What was measured before: kept beside the run, or in the user's cache, and found again by what it rests on."""
