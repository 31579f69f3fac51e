"""Workloads, arms and studies that compare Lipschitz-aware schedules with baselines."""
