"""The bench of policies: many tiny tasks, all trials of a task trained at once, against a tuned baseline."""
