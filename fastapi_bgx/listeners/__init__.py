"""What listens to events: each module turns them into one thing."""
