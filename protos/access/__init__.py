"""Who may call which method of our services, and how they prove who they are: the same on every door."""
