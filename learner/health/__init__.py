"""Health of the motors, from the telemetry that every episode carries."""
